// out = tokens, interpolated bilinearly, + the skip map; and the backward. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/parallel.h"
#include "dmtl/storage.h"
#include "dmtl/grid.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kRun = 512;  // number of channels that the backward processes at a time

// Computes pixels [begin, end) of one cell in one pixel row; out and skip point to the pixel `begin`. `corner` has the tokens
// at the upper left, upper right, lower left and lower right.
template <class T, int r, int begin, int end>
void cell_row(T* out, const T* skip, const T* const (&corner)[4], float way_y, int64_t C) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
        const float left = blend(load(corner[0] + c), load(corner[2] + c), way_y);
        const float right = blend(load(corner[1] + c), load(corner[3] + c), way_y);
        for (int k = begin; k < end; ++k) {
            const int64_t at = (k - begin) * C + c;
            store(out + at, load(skip + at) + blend(left, right, Cell<r>::way(k)));
        }
    }
}

// A work item is one row of pixels.
template <class T, int r>
void forward(const UpsampleAddParams& p, int threads) {
    using Axis = Cell<r>;
    const int64_t grid_h = p.height / r, grid_w = p.width / r, C = p.channels, line = p.width * C;
    const int64_t size = p.rows * p.height * line;
    if (size == 0) return;
    if (size < kSerialBelow) threads = 1;
    expect_writes(p.out, size * static_cast<int64_t>(sizeof(T)));
    parallel_for(p.rows * p.height, threads, [&](int64_t item) {
        const int64_t y = item % p.height, i = Axis::of_pixel(y);
        const float way_y = Axis::way(static_cast<int>(y - Axis::first_pixel(i)));
        const T* tokens = static_cast<const T*>(p.tokens) + item / p.height * grid_h * grid_w * C;
        const T* upper = tokens + Axis::low(i) * grid_w * C;
        const T* lower = tokens + Axis::high(i, grid_h) * grid_w * C;
        T* out = static_cast<T*>(p.out) + item * line;
        const T* skip = static_cast<const T*>(p.skip) + item * line;
        for (int64_t j = 0; j < Axis::count(grid_w); ++j) {
            const int64_t first = Axis::first_pixel(j), left = Axis::low(j) * C, right = Axis::high(j, grid_w) * C;
            const T* const corner[4] = {upper + left, upper + right, lower + left, lower + right};
            if (first < 0)
                cell_row<T, r, r / 2, r>(out, skip, corner, way_y, C);
            else if (first + r <= p.width)
                cell_row<T, r, 0, r>(out + first * C, skip + first * C, corner, way_y, C);
            else
                cell_row<T, r, 0, r / 2>(out + first * C, skip + first * C, corner, way_y, C);
        }
    });
}

// Adds the gradients of pixels [begin, end) of one cell in one pixel row (grad points to the pixel `begin`) to those of the
// tokens on its left and right.
template <class T, int r, int begin, int end>
void gather_row(float* left, float* right, const T* grad, float share_y, int64_t channels, int64_t C) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
        float to_left = 0.0f, to_right = 0.0f;
        for (int k = begin; k < end; ++k) {
            const float g = load(grad + (k - begin) * C + c);
            to_left = fma32(1.0f - Cell<r>::way(k), g, to_left);
            to_right = fma32(Cell<r>::way(k), g, to_right);
        }
        left[c] = fma32(share_y, to_left, left[c]);
        right[c] = fma32(share_y, to_right, right[c]);
    }
}

// Computes row i of the tokens of one map, channels [begin, begin + channels), from cell to cell. A token is complete when the
// cell on its right has been added.
template <class T, int r>
void gather(T* d_tokens, const T* grad, int64_t i, int64_t channels, const UpsampleAddBackwardParams& p) {
    using Axis = Cell<r>;
    const int64_t grid_h = p.height / r, grid_w = p.width / r, C = p.channels, line = p.width * C;
    const int64_t top = i * r - r / 2 < 0 ? 0 : i * r - r / 2;
    const int64_t bottom = (i + 1) * r + r / 2 > p.height ? p.height : (i + 1) * r + r / 2;
    float carried[kRun];
    for (int64_t j = 0; j <= grid_w; ++j) {
        float left[kRun] = {}, right[kRun] = {};
        const int64_t first = Axis::first_pixel(j);
        for (int64_t y = top; y < bottom; ++y) {
            const float share_y = share<r>(y, i, grid_h);
            if (first < 0)
                gather_row<T, r, r / 2, r>(left, right, grad + y * line, share_y, channels, C);
            else if (first + r <= p.width)
                gather_row<T, r, 0, r>(left, right, grad + y * line + first * C, share_y, channels, C);
            else
                gather_row<T, r, 0, r / 2>(left, right, grad + y * line + first * C, share_y, channels, C);
        }
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            const float own = j == 0 || j == grid_w ? left[c] + right[c] : left[c];  // at the border, both are the same token
            if (j > 0) store(d_tokens + (j - 1) * C + c, carried[c] + own);
            carried[c] = j == 0 ? own : right[c];
        }
    }
}

// A work item is one row of tokens.
template <class T, int r>
void backward(const UpsampleAddBackwardParams& p, int threads) {
    const int64_t grid_h = p.height / r, grid_w = p.width / r, C = p.channels;
    const int64_t size = p.rows * p.height * p.width * C;
    if (size == 0) return;
    if (size < kSerialBelow) threads = 1;
    expect_writes(p.d_tokens, size / (r * r) * static_cast<int64_t>(sizeof(T)));
    parallel_for(p.rows * grid_h, threads, [&](int64_t item) {
        T* d_tokens = static_cast<T*>(p.d_tokens) + item * grid_w * C;
        if (r == 1) {
            std::memcpy(d_tokens, static_cast<const T*>(p.grad) + item * p.width * C, static_cast<size_t>(grid_w * C) * sizeof(T));
            return;
        }
        const T* grad = static_cast<const T*>(p.grad) + item / grid_h * p.height * p.width * C;
        for (int64_t c = 0; c < C; c += kRun)
            gather<T, r>(d_tokens + c, grad + c, item % grid_h, C - c < kRun ? C - c : kRun, p);
    });
}

void upsample_add(const UpsampleAddParams& p, DType dtype, int threads) {
    with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        forward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, threads);
    });
}

void upsample_add_backward(const UpsampleAddBackwardParams& p, DType dtype, int threads) {
    with_storage_and_reduction(dtype, p.reduction, [&](auto* storage, auto r) {
        backward<std::remove_pointer_t<decltype(storage)>, decltype(r)::value>(p, threads);
    });
}

}  // namespace

DMTL_KERNELS(upsample_add, cpu_kernel<UpsampleAddParams, &upsample_add>("upsample_add", kUpsampleAddFields),
             cpu_kernel<UpsampleAddBackwardParams, &upsample_add_backward>("upsample_add_backward", kUpsampleAddBackwardFields))

}  // namespace dmtl::DMTL_ISA
