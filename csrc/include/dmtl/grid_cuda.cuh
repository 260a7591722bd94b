// Shared parts of the CUDA kernels between maps and tokens: 16-byte vectors along the channels, and the division of work. A
// block of kThreads threads is `lanes` vectors wide (the channels of one pixel, up to 512 bytes) and kThreads / lanes tokens
// (or cells) deep.
#pragma once

#include "dmtl/cuda_kernel.h"
#include "dmtl/grid.h"
#include "dmtl/storage.h"
#include "dmtl/vec_cuda.cuh"

#include <cuda_runtime.h>

namespace dmtl {
namespace {

constexpr int kThreads = 256;

// The number of vectors next to each other in a block: a power of two, at most a warp.
inline int lanes_for(int64_t vectors) {
    int lanes = 1;
    while (lanes < 32 && lanes < vectors) lanes *= 2;
    return lanes;
}

// The grid of blocks for `units`, of which a block processes `per_block`, and for all channels.
inline dim3 grid_for(int64_t units, int64_t per_block, int64_t vectors, int lanes) {
    return dim3(static_cast<unsigned>((units + per_block - 1) / per_block), static_cast<unsigned>((vectors + lanes - 1) / lanes));
}

// The first channel of this thread's vector.
template <class T>
__device__ __forceinline__ int64_t channel_of(int lanes) {
    return (int64_t{blockIdx.y} * lanes + threadIdx.x % lanes) * Vec<T>::kSize;
}

}  // namespace
}  // namespace dmtl
