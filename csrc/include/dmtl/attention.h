// The core of cross-attention on the CPU: softmax(q k^T / sqrt(d)) v for each row and head, and its backward pass. Some queries
// against all keys stay in the cache; the products run on gemm.h. Equal bits for every instruction set and number of threads.
#pragma once

#include "dmtl/special.h"
#include "dmtl/tokens.h"

namespace dmtl {
namespace {

// The backward pass takes a block of queries at a time.
constexpr int64_t kScoreFloats = 64 * 1024;  // maximum number of scores of a block
constexpr int64_t kQueries = 14;             // the number of queries in a block is a multiple of this

// q and a are [rows, n, heads d]; kv is [rows, m, 2 heads d], keys before values.
template <class T>
struct Attention {
    const T* q;
    const T* kv;
    int64_t n, m, heads, d;
    int64_t width() const { return heads * d; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(d)); }
    const T* query(int64_t pair) const { return q + pair / heads * n * width() + pair % heads * d; }
    const T* key(int64_t pair) const { return kv + pair / heads * m * 2 * width() + pair % heads * d; }
    const T* value(int64_t pair) const { return key(pair) + width(); }
    int64_t stride() const { return padded_to_lanes(m); }  // floats of a row of scores
    int64_t block() const {
        // Depends only on the shape: gradients are added up block by block, in the same order for all instruction sets.
        const int64_t fitting = kScoreFloats / stride() / kQueries * kQueries;
        const int64_t rows = fitting < kQueries ? kQueries : fitting;
        return rows < n ? rows : n;
    }
};

constexpr float kLog2OfE = 1.44269504f;

// The maximum of scale x scores and the sum of exponentials.
struct Softmax {
    float top, sum;
};

// Replaces m scores, a row of a tile (gemm.h), by exp(scale (score - maximum)); scale > 0. Scores up to the next multiple of 16
// are padding, which adds at most 15 x 2^-126 to the sum.
inline Softmax exponentials(float* scores, int64_t m, float scale) {
    constexpr int chains = 4;  // sums and maxima in parallel: one alone would wait for its own last result
    const auto slice = [=](int64_t s) { return scores + s * kSliceFloats; };
    const auto padded = [=](int64_t s) { return padded_to_lanes(slice_size(m, s)); };
    const int64_t slices = slices_of(m);
    for (int64_t j = slice_size(m, slices - 1); j < padded(slices - 1); ++j) slice(slices - 1)[j] = -__builtin_inff();
    F32x16 highest[chains], sum[chains];
    for (int i = 0; i < chains; ++i) highest[i] = F32x16::load(scores), sum[i] = F32x16::zero();
    const auto by_chains = [&](int64_t s, const auto& body) {
        const int64_t width = padded(s);
        for (int64_t j = 0; j < width; j += chains * kLanes16)
#pragma GCC unroll 4
            for (int i = 0; i < chains; ++i)
                if (j + i * kLanes16 < width) body(i, F32x16::load(slice(s) + j + i * kLanes16));
    };
    for (int64_t s = 0; s < slices; ++s) by_chains(s, [&](int i, F32x16 x) { highest[i] = max(highest[i], x); });
    const float top = largest_of(max(max(highest[0], highest[1]), max(highest[2], highest[3])));
    const float binary = scale * kLog2OfE;
    for (int64_t s = 0; s < slices; ++s) {
        float* score = slice(s);
        const int64_t width = padded(s);
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) score[j] = exp2_decay32((score[j] - top) * binary);
        by_chains(s, [&](int i, F32x16 x) { sum[i] = sum[i] + x; });
    }
    return {top * scale, sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]))};
}

// Computes queries [first, last) of one row and head. In bfloat16, the exponentials are rounded like the other factors, but not
// in their sum.
template <class T>
void attend(const Attention<T>& c, int64_t pair, Range queries, T* a, float* lse) {
    constexpr Factors factors = factors_of<T>;
    const int64_t width = c.width(), k_floats = packed_floats<factors>(c.d, c.m), v_floats = packed_floats<factors>(c.m, c.d);
    float* k = Workspace::floats(Slot::maps, k_floats + v_floats + (slices_of(c.d) + slices_of(c.m)) * kSliceFloats);
    float *v = k + k_floats, *q = v + v_floats, *scores = q + slices_of(c.d) * kSliceFloats;
    pack_columns<factors>(c.key(pair), 2 * width, c.d, c.m, k, 1);
    pack_rows<factors>(c.value(pair), 2 * width, c.m, c.d, v, 1);
    const PanelsOf<factors> keys{k, c.d, c.m}, values{v, c.m, c.d};
    const RowsOf<T> source{c.query(pair), width};
    T* out = a + (c.query(pair) - c.q);
    for (int64_t begin = queries.begin; begin < queries.end; begin += kTileRows) {
        const int64_t rows = queries.end - begin < kTileRows ? queries.end - begin : kTileRows;
        load_tile<factors>(source, begin, rows, c.d, q);
        for (int64_t p = 0; p < keys.count(); p += kTileVectors) {
            const int64_t column = p * kLanes16;
            float* to = scores + column / kDepth * kSliceFloats + column % kDepth;
            multiply_tile(rows, q, keys, p, keys.count() - p < kTileVectors ? 1 : kTileVectors, 0, 0, to, kTileStride);
        }
        float inverse[kTileRows];
        for (int64_t r = 0; r < rows; ++r) {
            const Softmax found = exponentials(scores + r * kTileStride, c.m, c.scale());
            inverse[r] = 1.0f / found.sum;
            if (lse != nullptr) lse[pair * c.n + begin + r] = found.top + std::log(found.sum);
        }
        for (int64_t s = 0; s < slices_of(c.m); ++s)
            round_factors<factors>(scores + s * kSliceFloats, rows, slice_size(c.m, s));
        for (int64_t p = 0; p < values.count(); p += kTileVectors) {
            alignas(64) float tile[kTileRows][kTileVectors * kLanes16];
            const int vectors = values.count() - p < kTileVectors ? 1 : kTileVectors;
            const int64_t column = p * kLanes16, left = c.d - column;
            const int64_t count = left < vectors * kLanes16 ? left : vectors * kLanes16;
            multiply_tile(rows, scores, values, p, vectors, 0, 0, tile[0], kTileVectors * kLanes16);
            for (int64_t r = 0; r < rows; ++r) {
                T* to = out + (begin + r) * width + column;
#pragma omp simd
                for (int64_t j = 0; j < count; ++j) store(to + j, tile[r][j] * inverse[r]);
            }
        }
    }
}

template <class T>
void attention(const Attention<T>& c, int64_t rows, T* a, float* lse, int threads) {
    const int64_t pairs = rows * c.heads;
    const int64_t wanted = pairs >= threads ? 1 : (2 * threads + pairs - 1) / pairs;
    const int64_t parts = wanted < (c.n + 63) / 64 ? wanted : (c.n + 63) / 64;
    if (pairs * c.n * c.m * c.d < (int64_t{1} << 16)) threads = 1;
    parallel_for(pairs * parts, threads,
                 [&](int64_t item) { attend(c, item / parts, share(c.n, parts, item % parts), a, lse); });
}

// Computes the gradients of one row and head. P and dS of a block of queries stay in the cache; dK and dV are sums over blocks.
template <class T>
void attend_backward(const Attention<T>& c, int64_t pair, const float* d_a, const T* a, const float* lse, float* d_q,
                     float* d_kv) {
    const int64_t stride = c.stride(), block = c.block(), width = c.width(), n = c.n, m = c.m, d = c.d;
    const int64_t across = packed_floats(d, m), along = packed_floats(m, d), rows_packed = packed_floats(block, d);
    float* k = Workspace::floats(Slot::maps, 2 * across + along + 2 * rows_packed + block * (2 * stride + 1));
    float *v = k + across, *k_rows = v + across, *right_q = k_rows + along, *right_a = right_q + rows_packed;
    float *p = right_a + rows_packed, *ds = p + block * stride, *delta = ds + block * stride;
    pack_columns(c.key(pair), 2 * width, d, m, k, 1);
    pack_columns(c.value(pair), 2 * width, d, m, v, 1);
    pack_rows(c.key(pair), 2 * width, m, d, k_rows, 1);
    const Panels keys{k, d, m}, values{v, d, m}, key_rows{k_rows, m, d};
    const float scale = c.scale();
    const int64_t at = c.query(pair) - c.q;
    float* d_k = d_kv + (c.key(pair) - c.kv);
    for (int64_t begin = 0; begin < n; begin += block) {
        const int64_t rows = n - begin < block ? n - begin : block;
        const T* q = c.query(pair) + begin * width;
        const float* d_a_rows = d_a + at + begin * width;
        const float* lse_rows = lse + pair * n + begin;
        const bool add = begin > 0;
        for (int64_t r = 0; r < rows; ++r) {
            F32x16 sum = F32x16::zero();
            const T* a_row = a + at + (begin + r) * width;
            by_sixteens(d, [&](int64_t i, int64_t count) {
                sum = fma(part(d_a_rows + r * width, i, count), part(a_row, i, count), sum);
            });
            delta[r] = sum_of(sum);
        }
        gemm_block({0, rows}, keys, {0, keys.count()}, RowsOf<T>{q, width},
                   [=](int64_t row, int64_t column, const float* x, int64_t count) {
#pragma omp simd
                       for (int64_t j = 0; j < count; ++j)
                           p[row * stride + column + j] = exp32(x[j] * scale - lse_rows[row]);
                   });
        gemm_block({0, rows}, values, {0, values.count()}, RowsOf<float>{d_a_rows, width},
                   [=](int64_t row, int64_t column, const float* x, int64_t count) {
                       const int64_t to = row * stride + column;
#pragma omp simd
                       for (int64_t j = 0; j < count; ++j) ds[to + j] = p[to + j] * (x[j] - delta[row]) * scale;
                   });
        gemm_block({0, rows}, key_rows, {0, key_rows.count()}, RowsOf<float>{ds, stride},
                   Store<float>{d_q + at + begin * width, width});
        pack_rows(q, width, rows, d, right_q, 1);
        pack_rows(d_a_rows, width, rows, d, right_a, 1);
        const auto added = [=](float* out) {
            return [=](int64_t row, int64_t column, const float* x, int64_t count) {
                float* to = out + row * 2 * width + column;
#pragma omp simd
                for (int64_t j = 0; j < count; ++j) to[j] = add ? to[j] + x[j] : x[j];
            };
        };
        const Panels right{right_q, rows, d}, right_grad{right_a, rows, d};
        gemm_block({0, m}, right, {0, right.count()}, ColumnsOf<float>{ds, stride}, added(d_k));
        gemm_block({0, m}, right_grad, {0, right.count()}, ColumnsOf<float>{p, stride}, added(d_k + width));
    }
}

// Computes d_q and d_kv (float32) from d_a.
template <class T>
void attention_backward(const Attention<T>& c, int64_t rows, const float* d_a, const T* a, const float* lse, float* d_q,
                        float* d_kv, int threads) {
    if (rows * c.heads * c.n * c.m * c.d < (int64_t{1} << 15)) threads = 1;
    parallel_for(rows * c.heads, threads,
                 [&](int64_t pair) { attend_backward(c, pair, d_a, a, lse, d_q, d_kv); });
}

}  // namespace
}  // namespace dmtl
