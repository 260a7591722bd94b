// Parameters of decode_map, and its arithmetic for one pixel, shared by the CPU and the CUDA kernels.
//
// Upsampling by a factor f (align_corners=False): map pixel x is at (x + 1/2) / f - 1/2 between two logits. With s = f / 2
// (rounded down) and x = f (j - 1) + p + s, 0 <= p < f, these are the logits j - 1 and j, and the phase p alone determines the
// position between them. Indices outside the row are clamped to its ends.
#pragma once

#include "dmtl/kernel_table.h"
#include "dmtl/special.h"

#include <cmath>

namespace dmtl {

enum class DecodeKind : int32_t { argmax = 0, softmax = 1, sigmoid = 2, value = 3, exp = 4, unit = 5 };

struct DecodeMapParams {
    void* out;      // [rows, height, width] int64 or float, or [rows, 3, height, width] float
    float* logits;  // [rows, classes, h, w], a workspace
    const void* x;  // [rows, channels, h, w] with strides in elements
    const void *weight, *bias;  // [classes, channels] or null if x holds the logits; [classes] or null
    int64_t stride_n, stride_c, stride_y, stride_x;
    int64_t rows, channels, classes, h, w;
    int64_t height, width, factor;
    int32_t kind;
};

namespace {

constexpr Field kDecodeMapFields[] = {
    DMTL_FIELDS(DecodeMapParams, out, logits, x, weight, bias, stride_n, stride_c, stride_y, stride_x, rows, channels, classes),
    DMTL_FIELDS(DecodeMapParams, h, w, height, width, factor, kind),
};

// The two logits between which a map pixel is; indices outside [0, size) are not yet replaced by the ends.
struct Between {
    int64_t low, phase;
    DMTL_INLINE int64_t first(int64_t size) const { return low < 0 ? 0 : low < size ? low : size - 1; }
    DMTL_INLINE int64_t second(int64_t size) const { return low + 1 < size ? low + 1 : size - 1; }
};

DMTL_INLINE Between between(int64_t x, int64_t factor) {
    const int64_t shifted = x - factor / 2 + factor;
    return {shifted / factor - 1, shifted % factor};
}

// The position between the first (0) and the second (1) logit.
DMTL_INLINE float way(int64_t phase, int64_t factor) {
    return static_cast<float>(2 * phase + (factor % 2 == 0 ? 1 : 0)) / static_cast<float>(2 * factor);
}

// a + way (b - a), which is exactly a if b is equal. `blend` of grid.h gives other bits.
DMTL_INLINE float lerp(float a, float b, float way) { return fma32(way, b - a, a); }

// Whether `value` replaces `best` as the largest. NaN counts as largest; of equal values, the first one stays.
DMTL_INLINE bool leads(float value, float best) { return (value > best) | ((value != value) & (best == best)); }

DMTL_INLINE float sigmoid32(float u) { return 1.0f / (1.0f + exp32(-u)); }

// 1 / max(|u|, 1e-4) from the sum of squares.
DMTL_INLINE float unit_scale(float squares) { return 1.0f / std::sqrt(squares < 1e-8f ? 1e-8f : squares); }

}  // namespace
}  // namespace dmtl
