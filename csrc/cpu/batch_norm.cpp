// Batch norm of channels-last maps with the clamp after it, and its backward. Compiled once per instruction set (DMTL_ISA).
//
// Lanes are channels. Pixels are divided into parts of a fixed size. Each part has its own sums, which are added up in order,
// so that results depend neither on the number of threads nor on the width of a register.
#include "dmtl/kernel_table.h"
#include "dmtl/parallel.h"
#include "dmtl/simd.h"
#include "dmtl/storage.h"

#include <cmath>

namespace dmtl::DMTL_ISA {
namespace {

struct BatchNormParams {
    void* out;
    float* mean;      // [channels]
    float* inv_std;   // [channels]
    float* sums;      // scratch [parts, 2, channels]
    const void* x;    // [pixels, channels]
    const float* weight;
    const float* bias;
    int64_t pixels, channels, part;
    float eps, low, high;
};

struct BatchNormBackwardParams {
    void* d_x;
    float* d_weight;
    float* d_bias;
    float* sums;      // scratch [parts, 2, channels]
    const void* grad;
    const void* x;
    const float* weight;
    const float* bias;
    const float* mean;
    const float* inv_std;
    int64_t pixels, channels, part;
    float low, high;
};

constexpr Field kBatchNormFields[] = {
    DMTL_FIELDS(BatchNormParams, out, mean, inv_std, sums, x, weight, bias),
    DMTL_FIELDS(BatchNormParams, pixels, channels, part, eps, low, high),
};

constexpr Field kBatchNormBackwardFields[] = {
    DMTL_FIELDS(BatchNormBackwardParams, d_x, d_weight, d_bias, sums, grad, x, weight, bias),
    DMTL_FIELDS(BatchNormBackwardParams, mean, inv_std, pixels, channels, part, low, high),
};

struct Parts {
    int64_t pixels, part;
    int64_t count() const { return (pixels + part - 1) / part; }
    int64_t size(int64_t index) const { return pixels - index * part < part ? pixels - index * part : part; }
};

// The mean of a part, and the sum of squared differences from it.
template <class T>
void moments(float* mean, float* squares, const T* x, int64_t pixels, int64_t C) {
    for (int64_t c = 0; c < C; ++c) mean[c] = squares[c] = 0.0f;
    for (int64_t i = 0; i < pixels; ++i) {
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) mean[c] += load(x + i * C + c);
    }
    const float share = 1.0f / static_cast<float>(pixels);
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) mean[c] *= share;
    for (int64_t i = 0; i < pixels; ++i) {
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const float away = load(x + i * C + c) - mean[c];
            squares[c] = fma32(away, away, squares[c]);
        }
    }
}

// Combines the moments of all parts (Chan, Golub and LeVeque 1983), sixteen channels at a time.
void combine(const BatchNormParams& p, const Parts& parts) {
    for (int64_t first = 0; first < p.channels; first += kLanes16) {
        const int64_t lanes = p.channels - first < kLanes16 ? p.channels - first : kLanes16;
        double mean[kLanes16] = {}, squares[kLanes16] = {}, count = 0.0;
        for (int64_t i = 0; i < parts.count(); ++i) {
            const double n = static_cast<double>(parts.size(i)), all = count + n;
            const float* means = p.sums + 2 * i * p.channels + first;
#pragma omp simd
            for (int64_t c = 0; c < lanes; ++c) {
                const double away = static_cast<double>(means[c]) - mean[c];
                squares[c] += static_cast<double>(means[p.channels + c]) + away * away * count * n / all;
                mean[c] += away * n / all;
            }
            count = all;
        }
#pragma omp simd
        for (int64_t c = 0; c < lanes; ++c) {
            p.mean[first + c] = static_cast<float>(mean[c]);
            p.inv_std[first + c] = static_cast<float>(1.0 / std::sqrt(squares[c] / count + static_cast<double>(p.eps)));
        }
    }
}

template <class T>
void forward(const BatchNormParams& p, int threads) {
    const int64_t C = p.channels;
    const Parts parts{p.pixels, p.part};
    const T* x = static_cast<const T*>(p.x);
    T* out = static_cast<T*>(p.out);
    if (p.pixels * C < kSerialBelow) threads = 1;
    parallel_for(parts.count(), threads, [&](int64_t i) {
        float* sums = p.sums + 2 * i * C;
        moments(sums, sums + C, x + i * p.part * C, parts.size(i), C);
    });
    combine(p, parts);
    float* scale = p.sums;  // the sums have done their work
    float* shift = p.sums + C;
    for (int64_t c = 0; c < C; ++c) {
        scale[c] = p.weight[c] * p.inv_std[c];
        shift[c] = fma32(-p.mean[c], scale[c], p.bias[c]);
    }
    parallel_for(parts.count(), threads, [&](int64_t i) {
        for (int64_t pixel = i * p.part; pixel < i * p.part + parts.size(i); ++pixel) {
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                float y = fma32(load(x + pixel * C + c), scale[c], shift[c]);
                y = y < p.low ? p.low : y;
                store(out + pixel * C + c, y > p.high ? p.high : y);
            }
        }
    });
}

// The gradient after the clamp.
DMTL_INLINE float gated(float grad, float y, float low, float high) { return y > low && y < high ? grad : 0.0f; }

template <class T>
void backward(const BatchNormBackwardParams& p, int threads) {
    const int64_t C = p.channels;
    const Parts parts{p.pixels, p.part};
    const T* x = static_cast<const T*>(p.x);
    const T* grad = static_cast<const T*>(p.grad);
    T* d_x = static_cast<T*>(p.d_x);
    if (p.pixels * C < kSerialBelow) threads = 1;
    parallel_for(parts.count(), threads, [&](int64_t i) {
        float* d_bias = p.sums + 2 * i * C;
        float* d_weight = d_bias + C;
        for (int64_t c = 0; c < C; ++c) d_bias[c] = d_weight[c] = 0.0f;
        for (int64_t pixel = i * p.part; pixel < i * p.part + parts.size(i); ++pixel) {
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const float x_hat = (load(x + pixel * C + c) - p.mean[c]) * p.inv_std[c];
                const float g = gated(load(grad + pixel * C + c), fma32(p.weight[c], x_hat, p.bias[c]), p.low, p.high);
                d_bias[c] += g;
                d_weight[c] = fma32(g, x_hat, d_weight[c]);
            }
        }
    });
    for (int64_t first = 0; first < C; first += kLanes16) {
        const int64_t lanes = C - first < kLanes16 ? C - first : kLanes16;
        double d_bias[kLanes16] = {}, d_weight[kLanes16] = {};
        for (int64_t i = 0; i < parts.count(); ++i) {
            const float* sums = p.sums + 2 * i * C + first;
#pragma omp simd
            for (int64_t c = 0; c < lanes; ++c) {
                d_bias[c] += static_cast<double>(sums[c]);
                d_weight[c] += static_cast<double>(sums[C + c]);
            }
        }
        for (int64_t c = 0; c < lanes; ++c) {
            p.d_bias[first + c] = static_cast<float>(d_bias[c]);
            p.d_weight[first + c] = static_cast<float>(d_weight[c]);
        }
    }
    float* scale = p.sums;  // the sums have done their work
    const float share = 1.0f / static_cast<float>(p.pixels);
    for (int64_t c = 0; c < C; ++c) scale[c] = p.weight[c] * p.inv_std[c];
    parallel_for(parts.count(), threads, [&](int64_t i) {
        for (int64_t pixel = i * p.part; pixel < i * p.part + parts.size(i); ++pixel) {
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const float x_hat = (load(x + pixel * C + c) - p.mean[c]) * p.inv_std[c];
                const float g = gated(load(grad + pixel * C + c), fma32(p.weight[c], x_hat, p.bias[c]), p.low, p.high);
                store(d_x + pixel * C + c, scale[c] * (g - share * fma32(x_hat, p.d_weight[c], p.d_bias[c])));
            }
        }
    });
}

DMTL_STORAGE_KERNEL(batch_norm, BatchNormParams, forward)
DMTL_STORAGE_KERNEL(batch_norm_backward, BatchNormBackwardParams, backward)

}  // namespace

DMTL_KERNELS(batch_norm, cpu_kernel<BatchNormParams, &batch_norm>("batch_norm", kBatchNormFields),
             cpu_kernel<BatchNormBackwardParams, &batch_norm_backward>("batch_norm_backward", kBatchNormBackwardFields))

}  // namespace dmtl::DMTL_ISA
