// Depthwise convolution of channels-last maps, and both its gradients. Compiled once per instruction set (DMTL_ISA).
//
// Lanes are channels, so that a sum has one order whatever the width of a register. The taps come as [k k, channels] in
// float32.
#include "dmtl/kernel_table.h"
#include "dmtl/parallel.h"
#include "dmtl/storage.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kSerialBelow = 16384;  // elements that are not worth a second thread
constexpr int kRun = 64;                 // channels at a time: their sums stay in registers

// Sizes: images, channels and the taps' side k; x has height x width pixels, out has out_height x out_width.
#define DMTL_DEPTHWISE_SIZES int64_t images, channels, height, width, out_height, out_width, k, stride, padding

// The convolution, or its data gradient: then x is the incoming gradient and out is that of the input.
struct DepthwiseConvParams {
    void* out;
    const void* x;
    const float* taps;
    DMTL_DEPTHWISE_SIZES;
};

struct DepthwiseConvWeightParams {
    float* d_taps;
    const void* x;
    const void* grad;
    DMTL_DEPTHWISE_SIZES;
};

#define DMTL_DEPTHWISE_FIELDS(Params)                                                                       \
    DMTL_FIELD(Params, images), DMTL_FIELD(Params, channels), DMTL_FIELD(Params, height),                   \
        DMTL_FIELD(Params, width), DMTL_FIELD(Params, out_height), DMTL_FIELD(Params, out_width),           \
        DMTL_FIELD(Params, k), DMTL_FIELD(Params, stride), DMTL_FIELD(Params, padding)

constexpr Field kDepthwiseConvFields[] = {
    DMTL_FIELD(DepthwiseConvParams, out), DMTL_FIELD(DepthwiseConvParams, x), DMTL_FIELD(DepthwiseConvParams, taps),
    DMTL_DEPTHWISE_FIELDS(DepthwiseConvParams),
};

constexpr Field kDepthwiseConvWeightFields[] = {
    DMTL_FIELD(DepthwiseConvWeightParams, d_taps), DMTL_FIELD(DepthwiseConvWeightParams, x),
    DMTL_FIELD(DepthwiseConvWeightParams, grad), DMTL_DEPTHWISE_FIELDS(DepthwiseConvWeightParams),
};

// The output positions [first, last) along one axis that read inside the map with tap u.
struct Range {
    int64_t first, last;
};

Range inside(int64_t u, int64_t size, int64_t out_size, int64_t stride, int64_t padding) {
    const int64_t shift = u - padding;  // position i reads pixel i stride + shift
    const int64_t first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    const int64_t last = size - shift <= 0 ? 0 : (size - shift - 1) / stride + 1;
    return {first, last < out_size ? last : out_size};
}

template <class T>
void add_product(float* sum, const float* tap, const T* x, int64_t count) {
    if (count == kRun) {
#pragma omp simd
        for (int c = 0; c < kRun; ++c) sum[c] = fma32(tap[c], load(x + c), sum[c]);
    } else {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) sum[c] = fma32(tap[c], load(x + c), sum[c]);
    }
}

template <class T>
void write(T* out, const float* sum, int64_t count) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) store(out + c, sum[c]);
}

// Where a tap reads along one axis for the pixel at `position` of the output: forward ...
struct Forward {
    static int64_t source(int64_t position, int64_t tap, int64_t stride, int64_t padding) {
        return position * stride + tap - padding;
    }
};

// ... and backward, where a pixel gathers from the positions that read it. Negative: from none with this tap.
struct DataGradient {
    static int64_t source(int64_t position, int64_t tap, int64_t stride, int64_t padding) {
        const int64_t scaled = position + padding - tap;
        return scaled % stride == 0 ? scaled / stride : -1;
    }
};

// An item is one row of one image's output.
template <class T, class Direction>
void gather(const DepthwiseConvParams& p, int threads) {
    const int64_t C = p.channels, size = p.images * p.out_height * p.out_width * C;
    if (size == 0) return;
    if (size < kSerialBelow) threads = 1;
    parallel_for(p.images * p.out_height, threads, [&](int64_t item) {
        const int64_t i = item % p.out_height;
        const T* x = static_cast<const T*>(p.x) + item / p.out_height * p.height * p.width * C;
        T* out = static_cast<T*>(p.out) + item * p.out_width * C;
        for (int64_t c = 0; c < C; c += kRun) {
            const int64_t count = C - c < kRun ? C - c : kRun;
            for (int64_t j = 0; j < p.out_width; ++j) {
                float sum[kRun] = {};
                for (int64_t u = 0; u < p.k; ++u) {
                    const int64_t row = Direction::source(i, u, p.stride, p.padding);
                    if (row < 0 || row >= p.height) continue;
                    for (int64_t v = 0; v < p.k; ++v) {
                        const int64_t column = Direction::source(j, v, p.stride, p.padding);
                        if (column < 0 || column >= p.width) continue;
                        add_product(sum, p.taps + (u * p.k + v) * C + c, x + (row * p.width + column) * C + c, count);
                    }
                }
                write(out + j * C + c, sum, count);
            }
        }
    });
}

template <class T>
void forward(const DepthwiseConvParams& p, int threads) {
    gather<T, Forward>(p, threads);
}

template <class T>
void data_gradient(const DepthwiseConvParams& p, int threads) {
    gather<T, DataGradient>(p, threads);
}

// Sum over one row of positions of grad times x, for one tap.
template <class T>
void add_row(float* sum, const T* grad, const T* x, int64_t positions, int64_t grad_step, int64_t x_step, int64_t count) {
    float row[kRun] = {};
    for (int64_t j = 0; j < positions; ++j, grad += grad_step, x += x_step) {
        if (count == kRun) {
#pragma omp simd
            for (int c = 0; c < kRun; ++c) row[c] = fma32(load(grad + c), load(x + c), row[c]);
        } else {
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) row[c] = fma32(load(grad + c), load(x + c), row[c]);
        }
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) sum[c] += row[c];
}

// An item is a run of channels: all its taps.
template <class T>
void weight_gradient(const DepthwiseConvWeightParams& p, int threads) {
    const int64_t C = p.channels, runs = (C + kRun - 1) / kRun;
    if (p.images * p.height * p.width * C < kSerialBelow) threads = 1;
    parallel_for(runs, threads, [&](int64_t run) {
        const int64_t c = run * kRun, count = C - c < kRun ? C - c : kRun;
        float sums[25][kRun] = {};
        for (int64_t image = 0; image < p.images; ++image) {
            const T* x = static_cast<const T*>(p.x) + image * p.height * p.width * C + c;
            const T* grad = static_cast<const T*>(p.grad) + image * p.out_height * p.out_width * C + c;
            for (int64_t i = 0; i < p.out_height; ++i)
                for (int64_t u = 0; u < p.k; ++u) {
                    const int64_t y = i * p.stride + u - p.padding;
                    if (y < 0 || y >= p.height) continue;
                    for (int64_t v = 0; v < p.k; ++v) {
                        const Range at = inside(v, p.width, p.out_width, p.stride, p.padding);
                        if (at.first >= at.last) continue;
                        const int64_t column = at.first * p.stride + v - p.padding;
                        add_row(sums[u * p.k + v], grad + (i * p.out_width + at.first) * C,
                                x + (y * p.width + column) * C, at.last - at.first, C, p.stride * C, count);
                    }
                }
        }
        for (int64_t tap = 0; tap < p.k * p.k; ++tap)
            for (int64_t l = 0; l < count; ++l) p.d_taps[tap * C + c + l] = sums[tap][l];
    });
}

DMTL_STORAGE_KERNEL(depthwise_conv, DepthwiseConvParams, forward)
DMTL_STORAGE_KERNEL(depthwise_conv_data, DepthwiseConvParams, data_gradient)
DMTL_STORAGE_KERNEL(depthwise_conv_weight, DepthwiseConvWeightParams, weight_gradient)

}  // namespace

DMTL_KERNELS(depthwise_conv, cpu_kernel<DepthwiseConvParams, &depthwise_conv>("depthwise_conv", kDepthwiseConvFields),
             cpu_kernel<DepthwiseConvParams, &depthwise_conv_data>("depthwise_conv_data", kDepthwiseConvFields),
             cpu_kernel<DepthwiseConvWeightParams, &depthwise_conv_weight>("depthwise_conv_weight", kDepthwiseConvWeightFields))

}  // namespace dmtl::DMTL_ISA
