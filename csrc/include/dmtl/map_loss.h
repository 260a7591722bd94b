// Parameters of map_loss and its backward, and their arithmetic for one pixel.
#pragma once

#include "dmtl/kernel_table.h"
#include "dmtl/special.h"

#include <limits>

namespace dmtl {

enum class LossKind : int32_t { cross_entropy = 0, logistic = 1, unit = 2, absolute = 3 };

struct MapLossParams {
    float* loss;          // [rows]; null in the backward
    int32_t* counts;      // [rows, 2]: valid pixels, those above one half; written forward, read backward
    double* sums;         // scratch, forward: [rows, h + 1, 2], losses of the pixels below and above one half
    int32_t* band_counts; // scratch, forward: [rows, h + 1, 2]
    const float* grad;    // [rows]
    void* d_logits;       // [rows, channels, h, w] with strides in elements
    float* parts;         // scratch, backward: [rows, h + 1, 2, channels, w], for the logits above and below a band
    float* wide;          // scratch: [rows, channels, h, w], the logits in float32
    const void* logits;   // with strides
    const void* label;    // [rows, 1 or 3, height, width], dense
    int64_t d_stride_n, d_stride_c, d_stride_y, d_stride_x;
    int64_t stride_n, stride_c, stride_y, stride_x;
    int64_t rows, channels, h, w, height, width;
    float ignore, positive_weight, negative_weight;
    int32_t label_bytes;  // of an entry: 1 (uint8) or 4 (float)
    int32_t kind, balanced, log, positive;
    int32_t factor;  // label pixels to each logit in both directions: 8 or 4
};

namespace {

constexpr Field kMapLossFields[] = {
    DMTL_FIELDS(MapLossParams, loss, counts, sums, band_counts, grad, d_logits, parts, wide, logits, label, d_stride_n),
    DMTL_FIELDS(MapLossParams, d_stride_c, d_stride_y, d_stride_x, stride_n, stride_c, stride_y, stride_x, rows, channels, h),
    DMTL_FIELDS(MapLossParams, w, height, width, ignore, positive_weight, negative_weight),
    DMTL_FIELDS(MapLossParams, label_bytes, kind, balanced, log, positive, factor),
};

constexpr float kLargest = 3.40282347e38f;
constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();  // an ignored label, for `unit` and `absolute`
constexpr float kNone = -1.0f;                                       // an ignored label, for other kinds

// The label, or NaN if it is ignored.
DMTL_INLINE float known(float label, float ignore) {
    const float finite = label + (label - label);
    return label == ignore ? kUnknown : finite;
}

DMTL_INLINE float softplus32(float x) { return (x > 0.0f ? x : 0.0f) + log1p32(exp32(x > 0.0f ? -x : x)); }

// 1, 0 or -1; NaN for NaN
DMTL_INLINE float sign32(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

// The weights w+ and w- of a row.
struct Weights {
    float positive, negative;
    Weights(const MapLossParams& p, const int32_t* counts) : positive(p.positive_weight), negative(p.negative_weight) {
        if (p.balanced == 0) return;
        const float share = static_cast<float>(counts[1]) / static_cast<float>(counts[0] > 0 ? counts[0] : 1);
        positive *= 1.0f - share;
        negative *= share;
    }
};

}  // namespace
}  // namespace dmtl
