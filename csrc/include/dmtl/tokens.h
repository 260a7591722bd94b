// Shared parts of the kernels on tokens [rows, width], around their matrix products (gemm.h): LayerNorm before a product and
// its backward pass after one, and sums over rows. Arithmetic is float32 for any storage type, except factors of bf16 products
// (gemm.h). The order of sums only depends on the shapes.
#pragma once

#include "dmtl/gemm.h"
#include "dmtl/storage.h"

#include <cmath>
#include <type_traits>

namespace dmtl {
namespace {

constexpr int64_t kRowsEach = 32;            // number of rows in a partial sum, and in a work item
constexpr int64_t kSumsSerialBelow = 32768;  // kSerialBelow for moments and sums of rows

// Loads sixteen numbers from p on; with n < 16, those after the first n are zero.
DMTL_INLINE F32x16 load16(const float* p) { return F32x16::load(p); }
DMTL_INLINE F32x16 load16(const float* p, int64_t n) { return F32x16::load(p, n); }
template <class T>
DMTL_INLINE F32x16 load16(const T* p, int64_t n = kLanes16) {
    float wide[kLanes16] = {};
    for (int64_t i = 0; i < n; ++i) wide[i] = load(p + i);
    return F32x16::load(wide);
}

// Calls body(first, count, load) for each group of up to sixteen numbers of a row; load(p) reads this group of a row.
template <class Body>
DMTL_INLINE void by_sixteens(int64_t width, const Body& body) {
    int64_t c = 0;
    for (; c + kLanes16 <= width; c += kLanes16) body(c, kLanes16);
    if (c < width) body(c, width - c);
}

template <class T>
DMTL_INLINE F32x16 part(const T* row, int64_t c, int64_t count) {
    return count == kLanes16 ? load16(row + c) : load16(row + c, count);
}

DMTL_INLINE void add_to(float* sums, F32x16 x, int64_t count) {
    if (count == kLanes16)
        (F32x16::load(sums) + x).store(sums);
    else
        (F32x16::load(sums, count) + x).store(sums, count);
}

template <class T>
void round_to(T* out, const float* values, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) store(out + i, values[i]);
}

struct Moments {
    float mean, rstd;
};

template <class T>
Moments moments_of(const T* row, int64_t width, float eps) {
    F32x16 sum = F32x16::zero();
    by_sixteens(width, [&](int64_t c, int64_t count) { sum = sum + part(row, c, count); });
    const float mean = sum_of(sum) / static_cast<float>(width);
    F32x16 square = F32x16::zero();
    by_sixteens(width, [&](int64_t c, int64_t count) {
        F32x16 apart = part(row, c, count) - F32x16::all(mean);
        if (count < kLanes16) {  // lanes beyond the row must be zero, not zero minus the mean
            float lane[kLanes16] = {};
            apart.store(lane, count);
            apart = F32x16::load(lane);
        }
        square = fma(apart, apart, square);
    });
    return {mean, 1.0f / std::sqrt(sum_of(square) / static_cast<float>(width) + eps)};
}

template <class T>
void row_moments(const T* x, int64_t rows, int64_t width, float eps, Moments* out, int threads) {
    parallel_for((rows + kRowsEach - 1) / kRowsEach, rows * width < kSumsSerialBelow ? 1 : threads, [&](int64_t item) {
        const int64_t end = item * kRowsEach + kRowsEach < rows ? item * kRowsEach + kRowsEach : rows;
        for (int64_t r = item * kRowsEach; r < end; ++r) out[r] = moments_of(x + r * width, width, eps);
    });
}

// LayerNorm computed while it is read: as a source of gemm's left side, and as elements of its right side.
template <class T>
struct Normed {
    const T* x;
    int64_t width;
    const Moments* moments;
    const T* weight;
    const T* bias;
    DMTL_INLINE float at(int64_t row, int64_t c) const {
        const float z = (load(x + row * width + c) - moments[row].mean) * moments[row].rstd;
        return fma32(z, load(weight + c), load(bias + c));
    }
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = x + (row + r) * width + k;
            const Moments m = moments[row + r];
#pragma omp simd
            for (int64_t c = 0; c < count; ++c)
                out[r * stride + c] = fma32((load(from + c) - m.mean) * m.rstd, load(weight + k + c), load(bias + k + c));
        }
    }
};

// The number of partial sums, of kRowsEach rows each, in a float32 sum over rows.
inline int64_t partial_sums(int64_t rows) { return (rows + kRowsEach - 1) / kRowsEach; }

// Sets total to, or adds to it, the sum of `items` partial sums that are `stride` floats apart. The sum is in double precision,
// because terms of a bias gradient cancel.
inline void add_partial(const float* partial, int64_t items, int64_t stride, int64_t width, bool add, float* total) {
    for (int64_t first = 0; first < width; first += kLanes16) {
        const int64_t count = width - first < kLanes16 ? width - first : kLanes16;
        double sum[kLanes16];
        for (int64_t c = 0; c < count; ++c) sum[c] = add ? static_cast<double>(total[first + c]) : 0.0;
        for (int64_t i = 0; i < items; ++i)
            for (int64_t c = 0; c < count; ++c) sum[c] += static_cast<double>(partial[i * stride + first + c]);
        for (int64_t c = 0; c < count; ++c) total[first + c] = static_cast<float>(sum[c]);
    }
}

// Sets total to, or adds to it, the sum of the rows of x; partial has partial_sums(rows) * width floats.
template <class T>
void sum_rows(const T* x, int64_t rows, int64_t width, bool add, float* total, float* partial, int threads) {
    parallel_for(partial_sums(rows), rows * width < kSumsSerialBelow ? 1 : threads, [&](int64_t item) {
        const int64_t end = item * kRowsEach + kRowsEach < rows ? item * kRowsEach + kRowsEach : rows;
        float* sums = partial + item * width;
        for (int64_t c = 0; c < width; ++c) sums[c] = 0.0f;
        for (int64_t r = item * kRowsEach; r < end; ++r)
            by_sixteens(width, [&](int64_t c, int64_t count) { add_to(sums + c, part(x + r * width, c, count), count); });
    });
    add_partial(partial, partial_sums(rows), width, width, add, total);
}

// The backward pass of LayerNorm: d_x = (g - mean(g) - z mean(g z)) rstd (+ residual) with g = grad weight; and
// d_weight (+)= sum grad z, d_bias (+)= sum grad. partial has partial_sums(rows) * 2 width floats.
template <class T>
void norm_backward(const float* grad, const T* x, const Moments* moments, const T* weight, const T* residual, int64_t rows,
                   int64_t width, T* d_x, bool add, float* d_weight, float* d_bias, float* partial, int threads) {
    const float share = 1.0f / static_cast<float>(width);
    parallel_for(partial_sums(rows), rows * width < kSerialBelow ? 1 : threads, [&](int64_t item) {
        const int64_t end = item * kRowsEach + kRowsEach < rows ? item * kRowsEach + kRowsEach : rows;
        float* sums = partial + item * 2 * width;
        for (int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0f;
        for (int64_t r = item * kRowsEach; r < end; ++r) {
            const float* grad_row = grad + r * width;
            const T* x_row = x + r * width;
            const Moments m = moments[r];
            F32x16 sum = F32x16::zero(), with_z = F32x16::zero();
            by_sixteens(width, [&](int64_t c, int64_t count) {
                const F32x16 d = part(grad_row, c, count), g = d * part(weight, c, count);
                const F32x16 z = (part(x_row, c, count) - F32x16::all(m.mean)) * F32x16::all(m.rstd);
                sum = sum + g;
                with_z = fma(g, z, with_z);
                add_to(sums + c, d * z, count);
                add_to(sums + width + c, d, count);
            });
            const float mean = sum_of(sum) * share, slope = sum_of(with_z) * share;
            const T* left = residual == nullptr ? nullptr : residual + r * width;
            T* out = d_x + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const float z = (load(x_row + c) - m.mean) * m.rstd;
                const float d = fma32(grad_row[c], load(weight + c), -mean) - z * slope;
                store(out + c, left == nullptr ? d * m.rstd : fma32(d, m.rstd, load(left + c)));
            }
        }
    });
    add_partial(partial, partial_sums(rows), 2 * width, width, add, d_weight);
    add_partial(partial + width, partial_sums(rows), 2 * width, width, add, d_bias);
}

// weight_grad[m, n] (+)= a^T b for a [rows, m], packed b [rows, n].
template <class T>
void weight_gradient(const T* a, int64_t m, const Panels& b, bool add, float* out, int threads) {
    const int64_t n = b.n;
    gemm(m, b, threads, ColumnsOf<T>{a, m}, [=](int64_t row, int64_t column, const float* v, int64_t count) {
        float* to = out + row * n + column;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) to[j] = add ? to[j] + v[j] : v[j];
    });
}

// Gradients of n parameters, added up in float32. If the results are float32, they are the sums themselves; otherwise the sums
// are in `own` (which has the sum of their sizes) and are rounded at the end.
template <class T, int n>
struct Gradients {
    T* result[n];
    float* sum[n];
    int64_t size[n];
    Gradients(void* const (&results)[n], const int64_t (&sizes)[n], float* own) {
        for (int i = 0; i < n; ++i) {
            result[i] = static_cast<T*>(results[i]);
            size[i] = sizes[i];
            sum[i] = std::is_same_v<T, float> ? static_cast<float*>(results[i]) : own;
            own += sizes[i];
        }
    }
    void round() const {
        if (std::is_same_v<T, float>) return;
        for (int i = 0; i < n; ++i)
            if (result[i] != nullptr) round_to(result[i], sum[i], size[i]);
    }
};

// The number of equal pieces of `total` rows such that each has at most `most` tokens.
inline int64_t pieces_of(int64_t total, int64_t tokens_each, int64_t most) {
    const int64_t rows = most / tokens_each > 0 ? most / tokens_each : 1;
    return (total + rows - 1) / rows;
}

}  // namespace
}  // namespace dmtl
