// condition_tokens: the product of patches with the folded weight, the moments of tokens, LayerNorm and the projection of the
// query; and the two kernels of its backward that gather patches from the maps and add them back. Floor for one image (34
// channels, C = 512): 0.28 GFLOP and 2 MB, less than the time of a launch; there are three launches.
#include "dmtl/condition_tokens.h"
#include "dmtl/product_cuda.cuh"

namespace dmtl::cuda {
namespace {

using Params = ConditionTokensParams;

constexpr int kThreads = 256;

template <class T>
struct Patches {
    Params p;
    __device__ Corner row(int64_t r) const { return corner_of(p, r); }
    __device__ Tap column(int64_t k) const { return tap_of(p, k); }
    __device__ float at(Corner corner, Tap tap) const { return patch_value<T>(p, corner, tap); }
};

// The LayerNorm of the tokens, as a source of the product.
template <class T>
struct Normed {
    struct Row {
        const T* x;
        float mean, rstd;
    };
    struct Column {
        int64_t k;
        float scale, shift;
    };
    const T *x, *weight, *bias;
    const float* stats;
    int64_t width;
    __device__ Row row(int64_t r) const { return {x + r * width, stats[2 * r], stats[2 * r + 1]}; }
    __device__ Column column(int64_t k) const { return {k, load(weight + k), load(bias + k)}; }
    __device__ float at(Row row, Column column) const {
        return fma32((load(row.x + column.k) - row.mean) * row.rstd, column.scale, column.shift);
    }
};

// An epilogue that writes rows of `out` [., n].
template <class T>
struct Store {
    T* out;
    const T* bias;  // or null
    int64_t n;
    __device__ void operator()(int64_t r, int64_t c, float value) const {
        store(out + r * n + c, bias == nullptr ? value : value + load(bias + c));
    }
};

__device__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

// One warp for each token.
template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(Params p) {
    const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= row_count(p)) return;
    const T* x = static_cast<const T*>(p.tokens) + row * p.width;
    float sum = 0.0f, square = 0.0f;
    for (int64_t c = lane; c < p.width; c += 32) sum += load(x + c);
    const float mean = warp_sum(sum) / static_cast<float>(p.width);
    for (int64_t c = lane; c < p.width; c += 32) {
        const float apart = load(x + c) - mean;
        square = fma32(apart, apart, square);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(p.width) + p.eps);
    if (lane == 0) p.stats[2 * row] = mean, p.stats[2 * row + 1] = rstd;
}

// One block for each token.
template <class T>
__global__ void __launch_bounds__(kThreads) take_kernel(Params p) {
    const int64_t depth = patch_size(p);
    const Corner corner = corner_of(p, blockIdx.x);
    T* out = static_cast<T*>(p.patches) + blockIdx.x * depth;
    for (int64_t k = threadIdx.x; k < depth; k += kThreads) store(out + k, patch_value<T>(p, corner, tap_of(p, k)));
}

// One thread for each pixel and channel of all maps.
template <class T>
__global__ void __launch_bounds__(kThreads) put_kernel(Params p) {
    const int64_t height = p.grid_h * p.reduction, width = p.grid_w * p.reduction;
    const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t pixel = item / p.channels, channel = item % p.channels;
    if (pixel >= p.samples * height * width) return;
    const int map = map_of(p, channel);
    if (p.d_maps[map] == nullptr) return;
    const int64_t end = map + 1 < p.map_count ? p.first[map + 1] : p.channels;
    T* out = static_cast<T*>(p.d_maps[map]) + pixel * (end - p.first[map]) + channel - p.first[map];
    store(out, pixel_gradient(p, static_cast<const T*>(p.patches), pixel / (height * width), channel, pixel / width % height,
                              pixel % width));
}

template <class T>
cudaError_t forward(const Params& p, cudaStream_t stream) {
    const int64_t rows = row_count(p);
    T* tokens = static_cast<T*>(p.tokens);
    const cudaError_t status = product<T>(Patches<T>{p}, p.weight, rows, p.width, patch_size(p),
                                          Store<T>{tokens, static_cast<const T*>(p.bias), p.width}, stream);
    if (status != cudaSuccess || p.query == nullptr) return status;
    moments_kernel<T><<<static_cast<unsigned>((rows + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream>>>(p);
    const Normed<T> normed{tokens, static_cast<const T*>(p.norm_weight), static_cast<const T*>(p.norm_bias), p.stats, p.width};
    return product<T>(normed, p.query_weight, rows, p.query_width, p.width,
                      Store<T>{static_cast<T*>(p.query), nullptr, p.query_width}, stream);
}

}  // namespace

static cudaError_t condition_tokens(const Params& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) { return forward<std::remove_pointer_t<decltype(storage)>>(params, stream); });
}

static cudaError_t condition_tokens_take(const Params& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        take_kernel<std::remove_pointer_t<decltype(storage)>>
            <<<static_cast<unsigned>(row_count(params)), kThreads, 0, stream>>>(params);
        return cudaGetLastError();
    });
}

static cudaError_t condition_tokens_put(const Params& params, DType dtype, cudaStream_t stream) {
    const int64_t items = row_count(params) * params.reduction * params.reduction * params.channels;
    return with_storage(dtype, [&](auto* storage) {
        put_kernel<std::remove_pointer_t<decltype(storage)>>
            <<<static_cast<unsigned>((items + kThreads - 1) / kThreads), kThreads, 0, stream>>>(params);
        return cudaGetLastError();
    });
}

DMTL_KERNELS(condition_tokens, cuda_kernel<Params, &condition_tokens>("condition_tokens", kConditionTokensFields),
             cuda_kernel<Params, &condition_tokens_take>("condition_tokens_take", kConditionTokensFields),
             cuda_kernel<Params, &condition_tokens_put>("condition_tokens_put", kConditionTokensFields))

}  // namespace dmtl::cuda
