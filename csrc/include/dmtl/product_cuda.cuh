// The product out [rows, n] = A [rows, depth] weight^T, where a source computes A. It uses tiles of 32 x 32, which suit few
// rows and short sums. 16-bit types use the tensor cores (one 16 x 16 fragment for each of four warps), float32 uses fused
// multiply-adds; sums are float32.
//
//     source.row(r), source.column(k): values of a row and of a column of A;  source.at(row, column): an element
//     epilogue(r, c, value): writes an element of the result
#pragma once

#include "dmtl/cuda_kernel.h"
#include "dmtl/storage.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <type_traits>

namespace dmtl {
namespace {

constexpr int kSide = 32;           // rows and columns of a tile, and its depth
constexpr int kProductThreads = 128;
constexpr int kRowsAtOnce = kProductThreads / kSide;
constexpr int kEach = kSide / kRowsAtOnce;  // number of rows of a tile that a thread fills
constexpr int kOutStride = kSide + 8;  // elements between rows in shared memory: no bank conflicts, and aligned fragments

template <class T>
using Tensorial = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat16, __half>;

template <class T>
struct Tiles {
    static constexpr int kStride = kSide + (std::is_same_v<T, float> ? 1 : 8);
    T a[kSide][kStride], b[kSide][kStride];  // [row][k], [column][k]
};

// The sums of a tile that a thread computes.
template <class T>
struct Sums {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;

    __device__ Sums() { nvcuda::wmma::fill_fragment(sum, 0.0f); }
    __device__ void add(const Tiles<T>& tiles) {
        using namespace nvcuda::wmma;
        const int warp = threadIdx.x / 32, row = warp / 2 * 16, column = warp % 2 * 16;
#pragma unroll
        for (int k = 0; k < kSide; k += 16) {
            fragment<matrix_a, 16, 16, 16, Tensorial<T>, row_major> a;
            fragment<matrix_b, 16, 16, 16, Tensorial<T>, col_major> b;
            load_matrix_sync(a, reinterpret_cast<const Tensorial<T>*>(&tiles.a[row][k]), Tiles<T>::kStride);
            load_matrix_sync(b, reinterpret_cast<const Tensorial<T>*>(&tiles.b[column][k]), Tiles<T>::kStride);
            mma_sync(sum, a, b, sum);
        }
    }
    __device__ void put(float (*out)[kOutStride]) const {
        const int warp = threadIdx.x / 32;
        nvcuda::wmma::store_matrix_sync(&out[warp / 2 * 16][warp % 2 * 16], sum, kOutStride, nvcuda::wmma::mem_row_major);
    }
};

template <>
struct Sums<float> {
    float sum[kEach] = {};  // rows threadIdx / 32 + 4 i of column threadIdx % 32

    __device__ void add(const Tiles<float>& tiles) {
        const int row = threadIdx.x / kSide, column = threadIdx.x % kSide;
        for (int k = 0; k < kSide; ++k)
#pragma unroll
            for (int i = 0; i < kEach; ++i) sum[i] = fma32(tiles.a[row + i * kRowsAtOnce][k], tiles.b[column][k], sum[i]);
    }
    __device__ void put(float (*out)[kOutStride]) const {
        for (int i = 0; i < kEach; ++i) out[threadIdx.x / kSide + i * kRowsAtOnce][threadIdx.x % kSide] = sum[i];
    }
};

template <class T, class Source, class Epilogue>
__global__ void __launch_bounds__(kProductThreads)
    product_kernel(Source source, const T* weight, int64_t rows, int64_t n, int64_t depth, Epilogue epilogue) {
    __shared__ union alignas(32) {
        Tiles<T> tiles;
        float out[kSide][kOutStride];
    } shared;
    const int lane = threadIdx.x % kSide, first = threadIdx.x / kSide;
    const int64_t row0 = int64_t{blockIdx.x} * kSide, column0 = int64_t{blockIdx.y} * kSide;
    decltype(source.row(0)) row[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int64_t r = row0 + first + i * kRowsAtOnce;
        row[i] = source.row(r < rows ? r : 0);
    }
    Sums<T> sums;
    for (int64_t k0 = 0; k0 < depth; k0 += kSide) {
        const int64_t k = k0 + lane;
        const auto column = source.column(k < depth ? k : 0);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const int line = first + i * kRowsAtOnce;
            const bool in_a = k < depth && row0 + line < rows, in_b = k < depth && column0 + line < n;
            store(&shared.tiles.a[line][lane], in_a ? source.at(row[i], column) : 0.0f);
            store(&shared.tiles.b[line][lane], in_b ? load(weight + (column0 + line) * depth + k) : 0.0f);
        }
        __syncthreads();
        sums.add(shared.tiles);
        __syncthreads();
    }
    sums.put(shared.out);
    __syncthreads();
    for (int i = first; i < kSide; i += kRowsAtOnce)
        if (row0 + i < rows && column0 + lane < n) epilogue(row0 + i, column0 + lane, shared.out[i][lane]);
}

template <class T, class Source, class Epilogue>
cudaError_t product(const Source& source, const void* weight, int64_t rows, int64_t n, int64_t depth, const Epilogue& epilogue,
                    cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((rows + kSide - 1) / kSide), static_cast<unsigned>((n + kSide - 1) / kSide));
    product_kernel<<<grid, kProductThreads, 0, stream>>>(source, static_cast<const T*>(weight), rows, n, depth, epilogue);
    return cudaGetLastError();
}

}  // namespace
}  // namespace dmtl
