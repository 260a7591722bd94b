// skip = x + bias and the tokens of skip in one pass over x, and the backward. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/parallel.h"
#include "dmtl/storage.h"
#include "dmtl/grid.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {
namespace {

// out = x + bias over `pixels` neighbouring pixels.
template <class T>
void add_bias(T* out, const T* x, const T* bias, int64_t pixels, int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p, out += channels, x += channels) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) store(out + c, load(x + c) + load(bias + c));
    }
}

// A work item is one row of tokens with its r rows of pixels.
template <class T, int r>
void forward(const NoisyTokensParams& p, int threads) {
    const int64_t grid_h = p.height / r, grid_w = p.width / r, C = p.channels, line = p.width * C;
    const int64_t size = p.rows * p.height * line;
    if (size == 0) return;
    if (size < kSerialBelow) threads = 1;
    if (p.skip != nullptr) expect_writes(p.skip, size * static_cast<int64_t>(sizeof(T)));
    expect_writes(p.tokens, size / (r * r) * static_cast<int64_t>(sizeof(T)));
    parallel_for(p.rows * grid_h, threads, [&](int64_t item) {
        const T* x = static_cast<const T*>(p.x) + item * r * line;
        const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + item / grid_h * p.bias_stride;
        T* skip = p.skip == nullptr ? nullptr : static_cast<T*>(p.skip) + item * r * line;
        T* tokens = static_cast<T*>(p.tokens) + item * grid_w * C;
        for (int64_t j = 0; j < grid_w; ++j, x += r * C, tokens += C) {
            if (skip != nullptr) {
                for (int dy = 0; dy < r; ++dy) add_bias(skip + dy * line, x + dy * line, bias, r, C);
                skip += r * C;
            }
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const float sum = centre_sum<r>([&](int dy, int dx) { return load(x + dy * line + dx * C + c); });
                store(tokens + c, sum * Centre<r>::kShare + (bias == nullptr ? 0.0f : load(bias + c)));
            }
        }
    });
}

// Computes d_x of the r pixels of one block in one pixel row, and adds it to `part` [C] (or null).
template <class T, int r, bool centre>
void spread(T* d_x, const T* grad_skip, const T* grad_tokens, float* part, int64_t C) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
        const float token = centre ? Centre<r>::kShare * load(grad_tokens + c) : 0.0f;
        float sum = 0.0f;
        for (int dx = 0; dx < r; ++dx) {
            const bool inside = centre && Centre<r>::holds(Centre<r>::kFirst, dx);
            const float d = load(grad_skip + dx * C + c) + (inside ? token : 0.0f);
            store(d_x + dx * C + c, d);
            sum += d;
        }
        if (part != nullptr) part[c] += sum;
    }
}

// Computes one row of tokens with its r rows of pixels, and a part of d_bias.
template <class T, int r>
void backward_item(const NoisyTokensBackwardParams& p, int64_t item, float* part) {
    const int64_t grid_w = p.width / r, C = p.channels, line = p.width * C;
    T* d_x = static_cast<T*>(p.d_x) + item * r * line;
    const T* grad_skip = static_cast<const T*>(p.grad_skip) + item * r * line;
    const T* grad_tokens = static_cast<const T*>(p.grad_tokens) + item * grid_w * C;
    for (int64_t c = 0; part != nullptr && c < C; ++c) part[c] = 0.0f;
    for (int64_t j = 0; j < grid_w; ++j, grad_tokens += C)
        for (int dy = 0; dy < r; ++dy) {
            const int64_t at = dy * line + j * r * C;
            if (Centre<r>::holds(dy, Centre<r>::kFirst))
                spread<T, r, true>(d_x + at, grad_skip + at, grad_tokens, part, C);
            else
                spread<T, r, false>(d_x + at, grad_skip + at, grad_tokens, part, C);
        }
}

// d_bias of one row (or of all rows): adds up the parts in a fixed order, independent of the threads that computed them.
template <class T>
void sum_parts(T* d_bias, const float* parts, int64_t count, int64_t C) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
        float sum = 0.0f;
        for (int64_t i = 0; i < count; ++i) sum += parts[i * C + c];
        store(d_bias + c, sum);
    }
}

template <class T, int r>
void backward(const NoisyTokensBackwardParams& p, int threads) {
    const int64_t size = p.rows * p.height * p.width * p.channels;
    if (size < kSerialBelow) threads = 1;
    if (size != 0) {
        expect_writes(p.d_x, size * static_cast<int64_t>(sizeof(T)));
        parallel_for(p.rows * p.height / r, threads, [&](int64_t item) {
            backward_item<T, r>(p, item, p.d_bias == nullptr ? nullptr : p.parts + item * p.channels);
        });
    }
    if (p.d_bias == nullptr) return;
    const int64_t biases = p.bias_stride == 0 ? 1 : p.rows;
    const int64_t count = size == 0 ? 0 : p.height / r * (p.bias_stride == 0 ? p.rows : 1);
    for (int64_t b = 0; b < biases; ++b)
        sum_parts(static_cast<T*>(p.d_bias) + b * p.channels, p.parts + b * count * p.channels, count, p.channels);
}

void noisy_tokens(const NoisyTokensParams& p, DType dtype, int threads) {
    with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        forward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, threads);
    });
}

void noisy_tokens_backward(const NoisyTokensBackwardParams& p, DType dtype, int threads) {
    with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        backward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, threads);
    });
}

}  // namespace

DMTL_KERNELS(noisy_tokens, cpu_kernel<NoisyTokensParams, &noisy_tokens>("noisy_tokens", kNoisyTokensFields),
             cpu_kernel<NoisyTokensBackwardParams, &noisy_tokens_backward>("noisy_tokens_backward", kNoisyTokensBackwardFields))

}  // namespace dmtl::DMTL_ISA
