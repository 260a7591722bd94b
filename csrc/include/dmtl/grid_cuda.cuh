// What the CUDA kernels between maps and tokens share: 16-byte vectors along the channels, and who does what. A block of kThreads
// is `lanes` vectors wide (the channels of one pixel, up to 512 bytes) and kThreads / lanes tokens (or cells) deep.
#pragma once

#include "dmtl/cuda_kernel.h"
#include "dmtl/grid.h"
#include "dmtl/storage.h"
#include "dmtl/vec_cuda.cuh"

#include <cuda_runtime.h>

namespace dmtl {
namespace {

constexpr int kThreads = 256;

// Vectors side by side in a block: a power of two, at most a warp.
inline int lanes_for(int64_t vectors) {
    int lanes = 1;
    while (lanes < 32 && lanes < vectors) lanes *= 2;
    return lanes;
}

// Enough blocks for `units`, `per_block` at a time, and all channels.
inline dim3 grid_for(int64_t units, int64_t per_block, int64_t vectors, int lanes) {
    return dim3(static_cast<unsigned>((units + per_block - 1) / per_block), static_cast<unsigned>((vectors + lanes - 1) / lanes));
}

// First channel of this thread's vector.
template <class T>
__device__ __forceinline__ int64_t channel_of(int lanes) {
    return (int64_t{blockIdx.y} * lanes + threadIdx.x % lanes) * Vec<T>::kSize;
}

}  // namespace
}  // namespace dmtl
