// Parameters of noisy_tokens and upsample_add, and the geometry that their CPU and CUDA kernels share. These operators convert
// between a map [rows, height, width, channels] (channels last) and its tokens. A token is the mean of the 2x2 centre of a
// reduction x reduction block. Height and width are multiples of reduction, which is 1, 2 or 4. All tensors are dense.
#pragma once

#include "dmtl/kernel_table.h"
#include "dmtl/scalar.h"
#include "dmtl/storage.h"

#include <type_traits>

namespace dmtl {

// skip = x + bias;  tokens = means of the centres of skip
struct NoisyTokensParams {
    void* skip;            // or null: compute only tokens
    void* tokens;
    const void* x;
    const void* bias;      // or null
    int64_t bias_stride;   // elements between the biases of two rows: 0 or channels
    int64_t rows, height, width, channels, reduction;
};

// d_x = grad_skip + grad_tokens, distributed over the centres;  d_bias = sum of d_x over the pixels (and rows)
struct NoisyTokensBackwardParams {
    void* d_x;
    void* d_bias;          // [channels], or [rows, channels] if bias_stride is not 0, or null
    float* parts;          // scratch for d_bias: [rows, ceil(tokens of a row / tokens_per_part), channels]
    const void* grad_skip;
    const void* grad_tokens;
    int64_t tokens_per_part, bias_stride;
    int64_t rows, height, width, channels, reduction;
};

// out = skip + tokens, interpolated bilinearly (align_corners=False)
struct UpsampleAddParams {
    void* out;
    const void* tokens;
    const void* skip;
    int64_t rows, height, width, channels, reduction;
};

// d_tokens: every token gathers its part of the gradient
struct UpsampleAddBackwardParams {
    void* d_tokens;
    const void* grad;
    int64_t rows, height, width, channels, reduction;
};

namespace {

constexpr Field kNoisyTokensFields[] = {
    DMTL_FIELDS(NoisyTokensParams, skip, tokens, x, bias, bias_stride, rows, height, width, channels, reduction),
};

constexpr Field kNoisyTokensBackwardFields[] = {
    DMTL_FIELDS(NoisyTokensBackwardParams, d_x, d_bias, parts, grad_skip, grad_tokens, tokens_per_part),
    DMTL_FIELDS(NoisyTokensBackwardParams, bias_stride, rows, height, width, channels, reduction),
};

constexpr Field kUpsampleAddFields[] = {
    DMTL_FIELDS(UpsampleAddParams, out, tokens, skip, rows, height, width, channels, reduction),
};

constexpr Field kUpsampleAddBackwardFields[] = {
    DMTL_FIELDS(UpsampleAddBackwardParams, d_tokens, grad, rows, height, width, channels, reduction),
};

// The centre of a block: pixels [kFirst, kFirst + kCentre) in both directions, each with the weight kShare.
template <int r>
struct Centre {
    static constexpr int kCount = r == 1 ? 1 : 2;
    static constexpr int kFirst = r == 4 ? 1 : 0;
    static constexpr float kShare = r == 1 ? 1.0f : 0.25f;
    static DMTL_INLINE bool holds(int dy, int dx) {
        return dy >= kFirst && dy < kFirst + kCount && dx >= kFirst && dx < kFirst + kCount;
    }
};

// The sum over the centre of a block; at(dy, dx) returns a pixel.
template <int r, class At>
DMTL_INLINE float centre_sum(const At& at) {
    constexpr int a = Centre<r>::kFirst, b = a + Centre<r>::kCount - 1;
    return r == 1 ? at(a, a) : (at(a, a) + at(a, b)) + (at(b, a) + at(b, b));
}

// Along one axis, pixels are divided into cells. Cell i is between the centres of the tokens i - 1 and i (clamped to the grid).
// Its r pixels, counted from first_pixel, are at (2 k + 1) / (2 r) between them. At reduction 1, a token is its pixel.
template <int r>
struct Cell {
    static DMTL_INLINE int64_t count(int64_t grid) { return r == 1 ? grid : grid + 1; }
    static DMTL_INLINE int64_t first_pixel(int64_t i) { return r == 1 ? i : i * r - r / 2; }
    static DMTL_INLINE int64_t of_pixel(int64_t y) { return r == 1 ? y : (y + r / 2) / r; }
    static DMTL_INLINE int64_t low(int64_t i) { return r == 1 || i == 0 ? i : i - 1; }
    static DMTL_INLINE int64_t high(int64_t i, int64_t grid) { return i < grid ? i : grid - 1; }
    static DMTL_INLINE float way(int k) { return r == 1 ? 0.0f : static_cast<float>(2 * k + 1) / (2 * r); }
};

// The weight of pixel y in token i, which must be one of the two tokens around the pixel: the transpose of the above.
template <int r>
DMTL_INLINE float share(int64_t y, int64_t i, int64_t grid) {
    using C = Cell<r>;
    const int64_t cell = C::of_pixel(y);
    const float way = C::way(static_cast<int>(y - C::first_pixel(cell)));
    return (C::low(cell) == i ? 1.0f - way : 0.0f) + (C::high(cell, grid) == i ? way : 0.0f);
}

// (1 - way) a + way b, with the weights that the backward uses. `lerp` of decode_map.h gives other bits.
DMTL_INLINE float blend(float a, float b, float way) { return fma32(way, b, (1.0f - way) * a); }

// Calls body with a null pointer of the storage type and with the reduction as a constant, and returns what it returns.
template <class Body>
auto with_storage_and_reduction(DType dtype, int64_t reduction, const Body& body) {
    return with_storage(dtype, [&](auto* storage) {
        switch (reduction) {
            case 4: return body(storage, std::integral_constant<int, 4>{});
            case 2: return body(storage, std::integral_constant<int, 2>{});
            default: return body(storage, std::integral_constant<int, 1>{});
        }
    });
}

}  // namespace
}  // namespace dmtl
