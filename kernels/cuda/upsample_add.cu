// out = tokens, interpolated bilinearly, + the skip map; and the backward. Forward: a thread computes one cell of one pixel row
// (r pixels between the same four tokens). Backward: a thread gathers the gradient of one token in a fixed order; its
// neighbours read the same pixels from the cache. Floor: the map is read and written once; backward, the gradient is read once.
#include "dmtl/grid_cuda.cuh"

#include <type_traits>

namespace dmtl::cuda {
namespace {

template <class T, int r>
__global__ void __launch_bounds__(kThreads) forward_kernel(UpsampleAddParams p, int lanes) {
    using V = Vec<T>;
    using Axis = Cell<r>;
    const int64_t grid_h = p.height / r, grid_w = p.width / r, cells = Axis::count(grid_w), C = p.channels;
    const int64_t unit = int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes, c = channel_of<T>(lanes);
    if (unit >= p.rows * p.height * cells || c >= C) return;
    const int64_t line = unit / cells, j = unit % cells, y = line % p.height, i = Axis::of_pixel(y);
    const int64_t upper = (line / p.height * grid_h + Axis::low(i)) * grid_w;
    const int64_t lower = (line / p.height * grid_h + Axis::high(i, grid_h)) * grid_w;
    const int64_t left = Axis::low(j), right = Axis::high(j, grid_w), first = Axis::first_pixel(j);
    const V corner[4] = {load_vec<T>(p.tokens, (upper + left) * C + c), load_vec<T>(p.tokens, (upper + right) * C + c),
                         load_vec<T>(p.tokens, (lower + left) * C + c), load_vec<T>(p.tokens, (lower + right) * C + c)};
    const float way_y = Axis::way(static_cast<int>(y - Axis::first_pixel(i)));
    float at_left[V::kSize], at_right[V::kSize];
#pragma unroll
    for (int k = 0; k < V::kSize; ++k) {
        at_left[k] = blend(load(&corner[0].value[k]), load(&corner[2].value[k]), way_y);
        at_right[k] = blend(load(&corner[1].value[k]), load(&corner[3].value[k]), way_y);
    }
#pragma unroll
    for (int dx = 0; dx < r; ++dx) {
        if (first + dx < 0 || first + dx >= p.width) continue;
        const int64_t at = (line * p.width + first + dx) * C + c;
        const V skip = load_vec<T>(p.skip, at);
        V out;
#pragma unroll
        for (int k = 0; k < V::kSize; ++k)
            store(&out.value[k], load(&skip.value[k]) + blend(at_left[k], at_right[k], Axis::way(dx)));
        store_vec(p.out, at, out);
    }
}

template <class T, int r>
__global__ void __launch_bounds__(kThreads) backward_kernel(UpsampleAddBackwardParams p, int lanes) {
    using V = Vec<T>;
    const int64_t grid_h = p.height / r, grid_w = p.width / r, C = p.channels;
    const int64_t token = int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes, c = channel_of<T>(lanes);
    if (token >= p.rows * grid_h * grid_w || c >= C) return;
    const int64_t i = token / grid_w % grid_h, j = token % grid_w, map = token / (grid_w * grid_h) * p.height;
    float total[V::kSize] = {};
    for (int64_t y = i * r - r / 2; y < (i + 1) * r + r / 2; ++y) {
        if (y < 0 || y >= p.height) continue;
        float line[V::kSize] = {};
#pragma unroll
        for (int dx = -(r / 2); dx < r + r / 2; ++dx) {
            const int64_t x = j * r + dx;
            if (x < 0 || x >= p.width) continue;
            const V grad = load_vec<T>(p.grad, ((map + y) * p.width + x) * C + c);
            const float share_x = share<r>(x, j, grid_w);
#pragma unroll
            for (int k = 0; k < V::kSize; ++k) line[k] = fma32(share_x, load(&grad.value[k]), line[k]);
        }
        const float share_y = share<r>(y, i, grid_h);
#pragma unroll
        for (int k = 0; k < V::kSize; ++k) total[k] = fma32(share_y, line[k], total[k]);
    }
    V out;
#pragma unroll
    for (int k = 0; k < V::kSize; ++k) store(&out.value[k], total[k]);
    store_vec(p.d_tokens, token * C + c, out);
}

template <class T, int r>
cudaError_t forward(const UpsampleAddParams& p, cudaStream_t stream) {
    const int64_t vectors = p.channels / Vec<T>::kSize, units = p.rows * p.height * Cell<r>::count(p.width / r);
    if (p.rows * p.height * p.width * vectors == 0) return cudaSuccess;
    const int lanes = lanes_for(vectors);
    forward_kernel<T, r><<<grid_for(units, kThreads / lanes, vectors, lanes), kThreads, 0, stream>>>(p, lanes);
    return cudaGetLastError();
}

template <class T, int r>
cudaError_t backward(const UpsampleAddBackwardParams& p, cudaStream_t stream) {
    const int64_t vectors = p.channels / Vec<T>::kSize, tokens = p.rows * (p.height / r) * (p.width / r);
    if (tokens * vectors == 0) return cudaSuccess;
    const int lanes = lanes_for(vectors);
    backward_kernel<T, r><<<grid_for(tokens, kThreads / lanes, vectors, lanes), kThreads, 0, stream>>>(p, lanes);
    return cudaGetLastError();
}

cudaError_t upsample_add(const UpsampleAddParams& p, DType dtype, cudaStream_t stream) {
    return with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        return forward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, stream);
    });
}

cudaError_t upsample_add_backward(const UpsampleAddBackwardParams& p, DType dtype, cudaStream_t stream) {
    return with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        return backward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, stream);
    });
}

}  // namespace

DMTL_KERNELS(upsample_add, cuda_kernel<UpsampleAddParams, &upsample_add>("upsample_add", kUpsampleAddFields),
             cuda_kernel<UpsampleAddBackwardParams, &upsample_add_backward>("upsample_add_backward", kUpsampleAddBackwardFields))

}  // namespace dmtl::cuda
