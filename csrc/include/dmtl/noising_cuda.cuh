// CUDA kernels of the two noising operators and their backward. One thread computes the four elements of a Philox block; the y
// index of a block is the row, and threads stride over the row. If rows are contiguous and aligned, a thread uses one vector
// access; with channels last, it processes 16 bytes of channels of the four pixels.
#pragma once

#include "dmtl/cuda_kernel.h"
#include "dmtl/noising.h"
#include "dmtl/storage.h"
#include "dmtl/vec_cuda.cuh"

#include <cuda_runtime.h>

namespace dmtl {
namespace {

constexpr int kThreads = 256;

template <class T>
struct alignas(4 * sizeof(T)) Four {
    T value[4];
};

// The four elements of a Philox block in a row: offset of the first one, and distance to the next (1, or `channels` with
// channels last).
struct Place {
    int64_t first, step;
};

DMTL_INLINE Place place_of(int64_t block, int64_t channels, int64_t groups) {
    if (channels == 0) return {4 * block, 1};
    const int64_t group = block % groups;
    return {4 * group * channels + block / groups, channels};
}

// The values that all elements of a row have in common, and the computation of one element.
template <class T, bool has_y, bool has_noise, bool drawn>
struct Row {
    RowCoefs coef;
    T* out;
    const T *x, *y, *noise;
    NoiseKey key;
    bool silent;

    DMTL_INLINE Row(const NoisingParams& p, int64_t row)
        : coef(row_coefs(p, row)),
          out(static_cast<T*>(p.out) + row * p.stride_out),
          x(static_cast<const T*>(p.x) + row * p.stride_x),
          y(has_y ? static_cast<const T*>(p.y) + row * p.stride_y : nullptr),
          noise(has_noise && !drawn ? static_cast<const T*>(p.noise) + row * p.stride_noise : nullptr),
          key(drawn ? noise_key(p.key + 3 * row, p.step) : NoiseKey{}),
          silent(coef.noise == 0.0f) {}

    DMTL_INLINE float value(float a, float b, float eps) const {
        return has_noise && !silent ? noised<has_y, true>(coef, a, b, eps) : noised<has_y, false>(coef, a, b, 0.0f);
    }
};

template <class T, bool has_y, bool has_noise, bool drawn, bool vector>
__global__ void __launch_bounds__(kThreads) noising_kernel(NoisingParams p) {
    const Row<T, has_y, has_noise, drawn> row(p, blockIdx.y);
    const int64_t blocks = (p.count + 3) / 4;
    const int64_t groups = p.channels == 0 ? 0 : p.count / p.channels / 4;
    for (int64_t block = blockIdx.x * int64_t{kThreads} + threadIdx.x; block < blocks; block += int64_t{gridDim.x} * kThreads) {
        float eps[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (drawn && !row.silent) normals(static_cast<uint32_t>(block), row.key, &eps[0], &eps[1], &eps[2], &eps[3]);
        if (vector) {
            const Four<T> xs = reinterpret_cast<const Four<T>*>(row.x)[block];
            const Four<T> ys = has_y ? reinterpret_cast<const Four<T>*>(row.y)[block] : Four<T>{};
            if (has_noise && !drawn) {
                const Four<T> given = reinterpret_cast<const Four<T>*>(row.noise)[block];
                for (int j = 0; j < 4; ++j) eps[j] = load(&given.value[j]);
            }
            Four<T> result;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float a = load(&xs.value[j]), b = has_y ? load(&ys.value[j]) : 0.0f;
                store(&result.value[j], row.value(a, b, eps[j]));
            }
            reinterpret_cast<Four<T>*>(row.out)[block] = result;
        } else {
            const Place place = place_of(block, p.channels, groups);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (4 * block + j >= p.count) break;
                const int64_t i = place.first + j * place.step;
                const float a = load(row.x + i), b = has_y ? load(row.y + i) : 0.0f;
                if (has_noise && !drawn) eps[j] = load(row.noise + i);
                store(row.out + i, row.value(a, b, eps[j]));
            }
        }
    }
}

// Channels last: a thread computes the four pixels of a Philox block for a vector of channels, so that a warp accesses whole
// lines.
template <class T, bool has_y, bool has_noise, bool drawn>
__global__ void __launch_bounds__(kThreads) noising_last_kernel(NoisingParams p, uint32_t groups, uint32_t vectors) {
    using V = Vec<T>;
    const Row<T, has_y, has_noise, drawn> row(p, blockIdx.y);
    for (uint32_t unit = blockIdx.x * kThreads + threadIdx.x; unit < groups * vectors; unit += gridDim.x * kThreads) {
        const uint32_t group = unit / vectors, first = unit % vectors * V::kSize;
        const int64_t at = int64_t{4} * group * p.channels + first;
        V xs[4], ys[4], given[4], result[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            xs[j] = load_vec<T>(row.x, at + j * p.channels);
            if (has_y) ys[j] = load_vec<T>(row.y, at + j * p.channels);
            if (has_noise && !drawn) given[j] = load_vec<T>(row.noise, at + j * p.channels);
        }
#pragma unroll
        for (int k = 0; k < V::kSize; ++k) {
            float eps[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (drawn && !row.silent) normals((first + k) * groups + group, row.key, &eps[0], &eps[1], &eps[2], &eps[3]);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (has_noise && !drawn) eps[j] = load(&given[j].value[k]);
                const float a = load(&xs[j].value[k]), b = has_y ? load(&ys[j].value[k]) : 0.0f;
                store(&result[j].value[k], row.value(a, b, eps[j]));
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) store_vec(row.out, at + j * p.channels, result[j]);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) scaling_kernel(ScalingParams p) {
    const int64_t row = blockIdx.y;
    const int64_t t = p.t[row];
    const bool valid = t >= 0 && t < p.table_size;
    const T* grad = static_cast<const T*>(p.grad) + row * p.stride_grad;
    for (int64_t k = blockIdx.x * int64_t{kThreads} + threadIdx.x; k < p.count; k += int64_t{gridDim.x} * kThreads) {
        const float g = load(grad + k);
#pragma unroll
        for (int i = 0; i < 3; ++i)
            if (p.out[i] != nullptr)
                store(static_cast<T*>(p.out[i]) + row * p.stride_out + k, valid ? p.table[i][t] * g : float_of(0x7FC00000u));
    }
}

// Whether all rows of T begin at multiples of `bytes`.
template <class T>
bool aligned(const void* pointer, int64_t stride, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0 && stride * sizeof(T) % bytes == 0;
}

// The grid: rows in y (at most 65535 per launch), and enough blocks in x to fill the device once.
inline dim3 grid_for(int64_t units, int64_t rows) {
    const int64_t wanted = (units + kThreads - 1) / kThreads;
    const int64_t most = 4096 / rows + 1;
    return dim3(static_cast<unsigned>(wanted < most ? wanted : most), static_cast<unsigned>(rows));
}

constexpr int64_t kMaxRows = 65535;

template <class T, bool has_y, bool has_noise, bool drawn>
cudaError_t launch_noising(NoisingParams p, cudaStream_t stream) {
    const int64_t vectors = p.channels / Vec<T>::kSize, groups = p.channels == 0 ? 0 : p.count / p.channels / 4;
    const auto all_aligned = [&](size_t bytes) {
        return aligned<T>(p.out, p.stride_out, bytes) && aligned<T>(p.x, p.stride_x, bytes) &&
               (!has_y || aligned<T>(p.y, p.stride_y, bytes)) &&
               (drawn || !has_noise || aligned<T>(p.noise, p.stride_noise, bytes));
    };
    const bool flat = p.channels == 0 && p.count % 4 == 0 && all_aligned(sizeof(Four<T>));
    const bool last = p.channels > 0 && p.channels % Vec<T>::kSize == 0 && groups * vectors < (int64_t{1} << 31) &&
                      all_aligned(sizeof(Vec<T>));
    const int64_t rows = p.batch;
    for (int64_t first = 0; first < rows; first += kMaxRows) {
        const int64_t size = rows - first < kMaxRows ? rows - first : kMaxRows;
        const dim3 grid = grid_for(last ? groups * vectors : (p.count + 3) / 4, size);
        if (last)
            noising_last_kernel<T, has_y, has_noise, drawn>
                <<<grid, kThreads, 0, stream>>>(p, static_cast<uint32_t>(groups), static_cast<uint32_t>(vectors));
        else if (flat)
            noising_kernel<T, has_y, has_noise, drawn, true><<<grid, kThreads, 0, stream>>>(p);
        else
            noising_kernel<T, has_y, has_noise, drawn, false><<<grid, kThreads, 0, stream>>>(p);
        p.out = static_cast<T*>(p.out) + size * p.stride_out;
        p.x = static_cast<const T*>(p.x) + size * p.stride_x;
        if (has_y) p.y = static_cast<const T*>(p.y) + size * p.stride_y;
        if (has_noise && !drawn) p.noise = static_cast<const T*>(p.noise) + size * p.stride_noise;
        if (drawn) p.key += 3 * size;
        p.t += size;
    }
    return cudaGetLastError();
}

template <class T, bool has_y>
cudaError_t noising(const NoisingParams& p, cudaStream_t stream) {
    if (p.batch == 0 || p.count == 0) return cudaSuccess;
    if (p.key != nullptr) return launch_noising<T, has_y, true, true>(p, stream);
    if (p.noise != nullptr) return launch_noising<T, has_y, true, false>(p, stream);
    return launch_noising<T, has_y, false, false>(p, stream);
}

template <class T>
cudaError_t scaling(ScalingParams p, cudaStream_t stream) {
    if (p.batch == 0 || p.count == 0) return cudaSuccess;
    const int64_t rows = p.batch;
    for (int64_t first = 0; first < rows; first += kMaxRows) {
        const int64_t size = rows - first < kMaxRows ? rows - first : kMaxRows;
        scaling_kernel<T><<<grid_for(p.count, size), kThreads, 0, stream>>>(p);
        for (int i = 0; i < 3; ++i)
            if (p.out[i] != nullptr) p.out[i] = static_cast<T*>(p.out[i]) + size * p.stride_out;
        p.grad = static_cast<const T*>(p.grad) + size * p.stride_grad;
        p.t += size;
    }
    return cudaGetLastError();
}

}  // namespace
}  // namespace dmtl
