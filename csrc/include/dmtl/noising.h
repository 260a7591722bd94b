// The arithmetic of q_sample and posterior_step for one element, shared by the CPU and the CUDA kernels.
#pragma once

#include "dmtl/noising_params.h"
#include "dmtl/philox.h"

namespace dmtl {
namespace {

// Coefficients of one row, read from the tables at the row's t.
struct RowCoefs {
    float x, y, noise;
};

DMTL_INLINE RowCoefs row_coefs(const NoisingParams& p, int64_t row) {
    const int64_t t = p.t[row];
    if (t < 0 || t >= p.table_size) {  // the row becomes NaN; on a CPU, this was already checked earlier
        const float nan = float_of(0x7FC00000u);
        return {nan, nan, nan};
    }
    return {p.coef_x[t], p.coef_y == nullptr ? 0.0f : p.coef_y[t], p.coef_noise[t]};
}

template <bool has_y, bool has_noise>
DMTL_INLINE float noised(RowCoefs coef, float x, float y, float eps) {
    float sum = coef.x * x;
    if (has_y) sum = fma32(coef.y, y, sum);
    if (has_noise) sum = fma32(coef.noise, eps, sum);
    return sum;
}

}  // namespace
}  // namespace dmtl
