// Parameters of the two noising operators and of their backward. Strides are elements between rows (samples); a row is dense.
#pragma once

#include "dmtl/kernel_table.h"

namespace dmtl {

// out = coef_x[t] x + coef_y[t] y + coef_noise[t] eps     (q_sample: no y)
struct NoisingParams {
    void* out;
    const void* x;
    const void* y;         // or null
    const void* noise;     // given noise, or null
    const int64_t* key;    // [batch, 3]: key to draw the noise, or null; if noise is null too, there is no noise
    const int64_t* t;      // [batch], in [0, S)
    const float* coef_x;   // [S]
    const float* coef_y;   // [S], or null
    const float* coef_noise;
    int64_t batch;
    int64_t count;         // elements of a row
    int64_t channels;      // 0: rows are in logical order; otherwise they are [count / channels, channels] (channels last)
    int64_t stride_out, stride_x, stride_y, stride_noise;
    int64_t table_size;    // S
    int32_t step;
};

// out[i] = table[i][t] grad, for every i whose out is not null
struct ScalingParams {
    void* out[3];
    const float* table[3];
    const void* grad;
    const int64_t* t;
    int64_t batch;
    int64_t count;
    int64_t stride_out, stride_grad;
    int64_t table_size;
};

namespace {

constexpr Field kNoisingFields[] = {
    DMTL_FIELD(NoisingParams, out),        DMTL_FIELD(NoisingParams, x),          DMTL_FIELD(NoisingParams, y),
    DMTL_FIELD(NoisingParams, noise),      DMTL_FIELD(NoisingParams, key),        DMTL_FIELD(NoisingParams, t),
    DMTL_FIELD(NoisingParams, coef_x),     DMTL_FIELD(NoisingParams, coef_y),     DMTL_FIELD(NoisingParams, coef_noise),
    DMTL_FIELD(NoisingParams, batch),      DMTL_FIELD(NoisingParams, count),      DMTL_FIELD(NoisingParams, channels),
    DMTL_FIELD(NoisingParams, stride_out), DMTL_FIELD(NoisingParams, stride_x),   DMTL_FIELD(NoisingParams, stride_y),
    DMTL_FIELD(NoisingParams, stride_noise), DMTL_FIELD(NoisingParams, table_size), DMTL_FIELD(NoisingParams, step),
};

constexpr Field kScalingFields[] = {
    DMTL_FIELD(ScalingParams, out),        DMTL_FIELD(ScalingParams, table),       DMTL_FIELD(ScalingParams, grad),
    DMTL_FIELD(ScalingParams, t),          DMTL_FIELD(ScalingParams, batch),       DMTL_FIELD(ScalingParams, count),
    DMTL_FIELD(ScalingParams, stride_out), DMTL_FIELD(ScalingParams, stride_grad), DMTL_FIELD(ScalingParams, table_size),
};

}  // namespace
}  // namespace dmtl
