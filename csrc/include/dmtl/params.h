// Plain parameter structs of the native kernels. Pointers and sizes only; Python owns tensors, shapes and checks.
// Strides count elements between rows (samples); inside a row data is dense.
#pragma once

#include <cstdint>

namespace dmtl {

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

// out = coef_x[t] x + coef_y[t] y + coef_noise[t] eps     (q_sample: no y)
struct NoisingParams {
    void* out;
    const void* x;
    const void* y;         // or null
    const void* noise;     // given noise, or null
    const int64_t* key;    // [batch, 3]: draw the noise, or null; with neither there is no noise
    const int64_t* t;      // [batch], in [0, S)
    const float* coef_x;   // [S]
    const float* coef_y;   // [S], or null
    const float* coef_noise;
    int64_t batch;
    int64_t count;         // elements of a row
    int64_t channels;      // 0: rows in logical order. Else rows lie as [count / channels, channels] (channels last)
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

}  // namespace dmtl
