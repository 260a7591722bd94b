// skip = x + bias and the tokens of skip in one pass over x, and the backward. A thread processes all pixels of a token's block
// for one vector of channels. Floor: the map is read and written once; if only tokens are computed, only the centres are read.
#include "dmtl/grid_cuda.cuh"

#include <type_traits>

namespace dmtl::cuda {
namespace {

template <class T, int r, bool has_bias>
__global__ void __launch_bounds__(kThreads) forward_kernel(NoisyTokensParams p, int lanes) {
    using V = Vec<T>;
    const int64_t grid_w = p.width / r, tokens_per_row = p.height / r * grid_w;
    const int64_t token = int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes;
    const int64_t c = channel_of<T>(lanes), C = p.channels;
    if (token >= p.rows * tokens_per_row || c >= C) return;
    const int64_t corner = (token / grid_w * r * p.width + token % grid_w * r) * C + c;
    V pixels[r * r];
#pragma unroll
    for (int i = 0; i < r * r; ++i)
        if (has_bias || Centre<r>::holds(i / r, i % r)) pixels[i] = load_vec<T>(p.x, corner + (i / r * p.width + i % r) * C);
    V bias;
    if (has_bias) bias = load_vec<T>(p.bias, token / tokens_per_row * p.bias_stride + c);
    V mean;
#pragma unroll
    for (int k = 0; k < V::kSize; ++k) {
        const float sum = centre_sum<r>([&](int dy, int dx) { return load(&pixels[dy * r + dx].value[k]); });
        store(&mean.value[k], sum * Centre<r>::kShare + (has_bias ? load(&bias.value[k]) : 0.0f));
    }
    store_vec(p.tokens, token * C + c, mean);
    if (has_bias) {
#pragma unroll
        for (int i = 0; i < r * r; ++i) {
            V out;
#pragma unroll
            for (int k = 0; k < V::kSize; ++k) store(&out.value[k], load(&pixels[i].value[k]) + load(&bias.value[k]));
            store_vec(p.skip, corner + (i / r * p.width + i % r) * C, out);
        }
    }
}

// A block computes one part of d_bias, over tokens_per_part tokens of one row. The bound of two blocks per multiprocessor gives
// it the registers that it needs on sm_80.
template <class T, int r>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(NoisyTokensBackwardParams p, int lanes, int64_t parts_per_row) {
    using V = Vec<T>;
    __shared__ float sums[kThreads * V::kSize];
    const int64_t grid_w = p.width / r, tokens_per_row = p.height / r * grid_w, part = blockIdx.x;
    const int64_t begin = part % parts_per_row * p.tokens_per_part;
    const int64_t end = begin + p.tokens_per_part < tokens_per_row ? begin + p.tokens_per_part : tokens_per_row;
    const int64_t c = channel_of<T>(lanes), C = p.channels;
    float total[V::kSize] = {};
    for (int64_t t = begin + threadIdx.x / lanes; c < C && t < end; t += kThreads / lanes) {
        const int64_t token = part / parts_per_row * tokens_per_row + t;
        const int64_t corner = (token / grid_w * r * p.width + token % grid_w * r) * C + c;
        const V from_token = load_vec<T>(p.grad_tokens, token * C + c);
#pragma unroll
        for (int i = 0; i < r * r; ++i) {
            const int64_t at = corner + (i / r * p.width + i % r) * C;
            const V grad = load_vec<T>(p.grad_skip, at);
            V out;
#pragma unroll
            for (int k = 0; k < V::kSize; ++k) {
                const float share = Centre<r>::holds(i / r, i % r) ? Centre<r>::kShare * load(&from_token.value[k]) : 0.0f;
                const float d = load(&grad.value[k]) + share;
                store(&out.value[k], d);
                total[k] += d;
            }
            store_vec(p.d_x, at, out);
        }
    }
    if (p.d_bias == nullptr) return;
#pragma unroll
    for (int k = 0; k < V::kSize; ++k) sums[threadIdx.x * V::kSize + k] = total[k];
    __syncthreads();
    for (int i = threadIdx.x; i < lanes * V::kSize; i += kThreads) {  // one channel each, tokens in their order
        const int64_t channel = int64_t{blockIdx.y} * lanes * V::kSize + i;
        float sum = 0.0f;
        for (int row = 0; row < kThreads / lanes; ++row) sum += sums[row * lanes * V::kSize + i];
        if (channel < C) p.parts[part * C + channel] = sum;
    }
}

// d_bias[group] = sum of its `count` parts: eight threads per channel, whose eight sums are then added in order.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(void* d_bias, const float* parts, int64_t count, int64_t C) {
    constexpr int kWidth = 32, kDepth = kThreads / kWidth;
    __shared__ float sums[kDepth][kWidth];
    const int64_t c = int64_t{blockIdx.x} * kWidth + threadIdx.x % kWidth, group = blockIdx.y;
    const int depth = threadIdx.x / kWidth;
    float sum = 0.0f;
    for (int64_t i = depth; c < C && i < count; i += kDepth) sum += parts[(group * count + i) * C + c];
    sums[depth][threadIdx.x % kWidth] = sum;
    __syncthreads();
    if (depth > 0 || c >= C) return;
    for (int i = 1; i < kDepth; ++i) sum += sums[i][threadIdx.x];
    store(static_cast<T*>(d_bias) + group * C + c, sum);
}

template <class T, int r>
cudaError_t forward(const NoisyTokensParams& p, cudaStream_t stream) {
    const int64_t vectors = p.channels / Vec<T>::kSize, tokens = p.rows * (p.height / r) * (p.width / r);
    if (tokens * vectors == 0) return cudaSuccess;
    const int lanes = lanes_for(vectors);
    const dim3 grid = grid_for(tokens, kThreads / lanes, vectors, lanes);
    if (p.bias == nullptr)
        forward_kernel<T, r, false><<<grid, kThreads, 0, stream>>>(p, lanes);
    else
        forward_kernel<T, r, true><<<grid, kThreads, 0, stream>>>(p, lanes);
    return cudaGetLastError();
}

template <class T, int r>
cudaError_t backward(const NoisyTokensBackwardParams& p, cudaStream_t stream) {
    const int64_t vectors = p.channels / Vec<T>::kSize, tokens_per_row = (p.height / r) * (p.width / r);
    const int64_t parts_per_row = (tokens_per_row + p.tokens_per_part - 1) / p.tokens_per_part;
    const int lanes = lanes_for(vectors);
    if (p.rows * parts_per_row * vectors > 0) {
        const dim3 grid = grid_for(p.rows * parts_per_row, 1, vectors, lanes);
        backward_kernel<T, r><<<grid, kThreads, 0, stream>>>(p, lanes, parts_per_row);
    }
    if (p.d_bias != nullptr && vectors > 0) {
        const int64_t groups = p.bias_stride == 0 ? 1 : p.rows, count = parts_per_row * (p.bias_stride == 0 ? p.rows : 1);
        const dim3 grid(static_cast<unsigned>((p.channels + 31) / 32), static_cast<unsigned>(groups));
        if (groups > 0) sum_parts_kernel<T><<<grid, kThreads, 0, stream>>>(p.d_bias, p.parts, count, p.channels);
    }
    return cudaGetLastError();
}

cudaError_t noisy_tokens(const NoisyTokensParams& p, DType dtype, cudaStream_t stream) {
    return with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        return forward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, stream);
    });
}

cudaError_t noisy_tokens_backward(const NoisyTokensBackwardParams& p, DType dtype, cudaStream_t stream) {
    return with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        return backward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, stream);
    });
}

}  // namespace

DMTL_KERNELS(noisy_tokens, cuda_kernel<NoisyTokensParams, &noisy_tokens>("noisy_tokens", kNoisyTokensFields),
             cuda_kernel<NoisyTokensBackwardParams, &noisy_tokens_backward>("noisy_tokens_backward", kNoisyTokensBackwardFields))

}  // namespace dmtl::cuda
