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
    DMTL_FIELDS(NoisingParams, out, x, y, noise, key, t, coef_x, coef_y, coef_noise, batch, count, channels),
    DMTL_FIELDS(NoisingParams, stride_out, stride_x, stride_y, stride_noise, table_size, step),
};

constexpr Field kScalingFields[] = {
    DMTL_FIELDS(ScalingParams, out, table, grad, t, batch, count, stride_out, stride_grad, table_size),
};

}  // namespace
}  // namespace dmtl
