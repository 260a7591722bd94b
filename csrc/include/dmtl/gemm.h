// Matrix products in float32 for CPU kernels: C = A B. One source serves every instruction set, with equal bits on all of them
// and for every number of threads. (With AVX-512 it reaches about 90 % of the processor's peak of fused multiply-adds.)
//
// B [k, n] is packed once into panels of 16 columns: row r of panel p is at packed[(p k + r) 16], and the last panel is padded
// with zeros:
//
//     float* packed = Workspace::floats(Slot::weights, packed_floats(k, n));
//     pack_rows(b, ldb, k, n, packed, threads);           // B itself, row-major [k, n]
//     pack_columns(weight, ldw, k, n, packed, threads);   // B = weight^T, weight row-major [n, k] as in torch's Linear
//
// A [m, k] is read by a `source` and C is written by an `epilogue`; both are functors. So operations before and after a product
// (LayerNorm, gathering of patches, 16-bit storage; bias, GELU, residual) need no separate pass:
//
//     source(row, rows, k, count, out, stride): out[r * stride + c] = A[row + r, k + c] for r < rows, c < count (count <= 256)
//     (a source with `static constexpr bool by_columns = true`: out[c * stride + r], for A^T in memory)
//     epilogue(row, column, values, count): values[0 .. count) are C[row, column ...], count <= 32; the epilogue stores them
//
//     gemm(m, {packed, k, n}, threads, RowsOf<float>{a, lda}, [&](int64_t row, int64_t column, const float* v, int64_t count) {
//     #pragma omp simd
//         for (int64_t j = 0; j < count; ++j) c[row * ldc + column + j] = v[j] + bias[column + j];
//     });
//
// `gemm_block` is the serial version, for kernels that have their own parallel loop. Several threads call source and epilogue
// at once. The epilogue is called once for each row and run of columns; for a row, in the order of the columns. gemm_block
// reads all of its rows of A before it writes anything, so a work item that computes all columns may overwrite A with C.
//
// Each element of C is the sum of partial sums over 256 consecutive k; each partial sum starts at zero and uses fma in order of
// k.
#pragma once

#include "dmtl/parallel.h"
#include "dmtl/simd.h"
#include "dmtl/workspace.h"

#include <type_traits>

namespace dmtl {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 14, kTileVectors = 2;  // 28 accumulators of 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kTileRows = 6, kTileVectors = 1;  // 12 accumulators of 16 registers
#else
constexpr int kTileRows = 2, kTileVectors = 1;
#endif
constexpr int64_t kDepth = 256;                      // number of k in a partial sum
constexpr int64_t kTileStride = kDepth + 16;         // floats between the rows of a packed tile; not a power of two
constexpr int64_t kColumnStride = kTileRows < 8 ? 8 : 16;  // floats between its columns, if it is stored by columns
constexpr int64_t kSliceFloats = kColumnStride * kTileStride;        // size of a tile for one partial sum, in either layout
constexpr int64_t kBlockRows = 5 * 14;               // maximum rows of A in memory at a time; fewer if k is large
constexpr int64_t kBlockFloats = 64 * 1024;          // maximum floats of these rows

struct Panels {
    const float* data;
    int64_t k, n;
    int64_t count() const { return (n + kLanes16 - 1) / kLanes16; }
    const float* panel(int64_t p) const { return data + p * k * kLanes16; }
};

inline int64_t packed_floats(int64_t k, int64_t n) { return (n + kLanes16 - 1) / kLanes16 * kLanes16 * k; }

// packed = panels of B, where b(r, c) is the element of B at row r and column c.
template <class Element>
void pack_panels(int64_t k, int64_t n, float* packed, int threads, const Element& b) {
    const int64_t panels = (n + kLanes16 - 1) / kLanes16;
    parallel_for(panels, k * n < 16384 ? 1 : threads, [&](int64_t p) {
        const int64_t column = p * kLanes16;
        const int64_t width = n - column < kLanes16 ? n - column : kLanes16;
        float* out = packed + column * k;
        for (int64_t r = 0; r < k; ++r, out += kLanes16)
            for (int64_t c = 0; c < kLanes16; ++c) out[c] = c < width ? b(r, column + c) : 0.0f;
    });
}

template <class T>
void pack_rows(const T* b, int64_t ldb, int64_t k, int64_t n, float* packed, int threads) {
    pack_panels(k, n, packed, threads, [=](int64_t r, int64_t c) { return load(b + r * ldb + c); });
}

template <class T>
void pack_columns(const T* weight, int64_t ldw, int64_t k, int64_t n, float* packed, int threads) {
    pack_panels(k, n, packed, threads, [=](int64_t r, int64_t c) { return load(weight + c * ldw + r); });
}

// Sources: A as it is in memory, and A = a^T.
template <class T>
struct RowsOf {
    const T* a;
    int64_t lda;
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = a + (row + r) * lda + k;
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) out[r * stride + c] = load(from + c);
        }
    }
};

template <class T>
struct ColumnsOf {
    static constexpr bool by_columns = true;
    const T* a;  // [k, m]
    int64_t lda;
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t c = 0; c < count; ++c) {
            const T* from = a + (k + c) * lda + row;
            if constexpr (std::is_same_v<T, float>)
                F32x16::load(from, rows).store(out + c * stride);  // the next column overwrites the excess
            else
                for (int64_t r = 0; r < rows; ++r) out[c * stride + r] = load(from + r);
        }
    }
};

template <class Source, class = void>
struct ByColumns : std::false_type {};
template <class Source>
struct ByColumns<Source, std::void_t<decltype(Source::by_columns)>> : std::bool_constant<Source::by_columns> {};

using Tile = float[kTileRows][kTileVectors * kLanes16];

// What later tiles will read: one cache line is prefetched for each k, so that loads from memory are spread over the products.
struct Ahead {
    const float* line;
    int64_t step;  // to the next line; 0 if there is nothing to prefetch
};

// Sets tile to, or adds to it, a[rows, depth] times `vectors` panels that start at b and are b_stride floats apart.
template <int rows, int vectors, bool by_columns>
void tile_product(const float* a, const float* b, int64_t b_stride, int64_t depth, bool add, Ahead ahead, Tile& tile) {
    F32x16 sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[r][v] = F32x16::zero();
    for (int64_t k = 0; k < depth; ++k) {
        F32x16 column[vectors];
        __builtin_prefetch(ahead.line + k * ahead.step);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) column[v] = F32x16::load(b + v * b_stride + k * kLanes16);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const F32x16 x = F32x16::all(by_columns ? a[k * kColumnStride + r] : a[r * kTileStride + k]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            float* out = &tile[r][v * kLanes16];
            (add ? F32x16::load(out) + sum[r][v] : sum[r][v]).store(out);
        }
}

template <int rows, bool by_columns>
void tile_rows(int64_t count, int vectors, const float* a, const float* b, int64_t b_stride, int64_t depth, bool add,
               Ahead ahead, Tile& tile) {
    if constexpr (rows > 0) {
        if (count < rows) return tile_rows<rows - 1, by_columns>(count, vectors, a, b, b_stride, depth, add, ahead, tile);
        if (vectors == 1) return tile_product<rows, 1, by_columns>(a, b, b_stride, depth, add, ahead, tile);
        if constexpr (kTileVectors == 2) tile_product<rows, 2, by_columns>(a, b, b_stride, depth, add, ahead, tile);
    }
}

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// Part i of [0, total) in `parts` nearly equal parts.
inline Range share(int64_t total, int64_t parts, int64_t i) { return {total * i / parts, total * (i + 1) / parts}; }

// Computes some rows of C and panels of B, serially.
template <class Source, class Epilogue>
void gemm_block(Range rows, const Panels& b, Range panels, const Source& source, const Epilogue& epilogue) {
    const int64_t tiles = (rows.size() + kTileRows - 1) / kTileRows;
    const int64_t slices = b.k > 0 ? (b.k + kDepth - 1) / kDepth : 1;
    constexpr bool by_columns = ByColumns<Source>::value;
    float* a = Workspace::floats(Slot::a_block, tiles * slices * kSliceFloats);
    for (int64_t t = 0; t < tiles; ++t) {
        const Range part = share(rows.size(), tiles, t);
        for (int64_t s = 0; s < slices; ++s) {
            const int64_t k = s * kDepth, count = b.k - k < kDepth ? b.k - k : kDepth;
            source(rows.begin + part.begin, part.size(), k, count, a + (t * slices + s) * kSliceFloats,
                   by_columns ? kColumnStride : kTileStride);
        }
    }
    for (int64_t p = panels.begin; p < panels.end; p += kTileVectors) {
        const int vectors = panels.end - p < kTileVectors ? 1 : kTileVectors;
        const int64_t column = p * kLanes16;
        const int64_t width = b.n - column < vectors * kLanes16 ? b.n - column : vectors * kLanes16;
        // the next panels; the loop over tiles prefetches them once
        const int64_t unread = p + 2 * kTileVectors <= panels.end ? kTileVectors * b.k : 0;
        for (int64_t t = 0; t < tiles; ++t) {
            alignas(64) Tile tile;
            const Range part = share(rows.size(), tiles, t);
            for (int64_t s = 0; s < slices; ++s) {
                const int64_t k = s * kDepth, count = b.k - k < kDepth ? b.k - k : kDepth;
                const int64_t line = (t * slices + s) * kDepth;
                const Ahead ahead = line < unread ? Ahead{b.panel(p + kTileVectors) + line * kLanes16, kLanes16}
                                                  : Ahead{b.panel(p), 0};
                tile_rows<kTileRows, by_columns>(part.size(), vectors, a + (t * slices + s) * kSliceFloats,
                                                 b.panel(p) + k * kLanes16, b.k * kLanes16, count, s > 0, ahead, tile);
            }
            for (int64_t r = 0; r < part.size(); ++r) {
                const int64_t row = rows.begin + part.begin + r;
                if (width == kTileVectors * kLanes16)
                    epilogue(row, column, tile[r], kTileVectors * kLanes16);  // here the count is a compile-time constant
                else
                    epilogue(row, column, tile[r], width);
            }
        }
    }
}

// The number of row blocks, chosen so that `threads` threads get equal work.
inline int64_t row_blocks(int64_t m, int64_t k, int threads) {
    const int64_t fitting = kBlockFloats / (k > 0 ? k : 1) / kTileRows * kTileRows;
    const int64_t most = fitting > kBlockRows ? kBlockRows : fitting < kTileRows ? kTileRows : fitting;
    const int64_t blocks = (m + most - 1) / most;
    return blocks > threads ? (blocks + threads - 1) / threads * threads : blocks;
}

template <class Source, class Epilogue>
void gemm(int64_t m, const Panels& b, int threads, const Source& source, const Epilogue& epilogue) {
    if (m == 0 || b.n == 0) return;
    if (m * b.n * b.k < (int64_t{1} << 17)) threads = 1;  // too little work for a second thread
    const int64_t blocks = row_blocks(m, b.k, threads);
    // With few rows, the columns are divided among threads as well, in pairs of panels.
    const int64_t pairs = (b.count() + 1) / 2;
    int64_t groups = blocks % threads == 0 ? 1 : threads;
    if (groups > pairs) groups = pairs;
    parallel_for(blocks * groups, threads, [&](int64_t item) {
        const Range part = share(pairs, groups, item % groups);
        const Range panels{2 * part.begin, 2 * part.end < b.count() ? 2 * part.end : b.count()};
        gemm_block(share(m, blocks, item / groups), b, panels, source, epilogue);
    });
}

}  // namespace
}  // namespace dmtl
