// Matrix products for CPU kernels: C = A B, in float32 or of numbers rounded to bfloat16. One source serves every instruction
// set, with equal bits on all of them and for every number of threads. (With AVX-512 it reaches about 90 % of the processor's
// peak of fused multiply-adds.)
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
//     gemm(m, {packed, k, n}, threads, RowsOf<float>{a, lda}, StoreBiased<float>{c, ldc, bias});
//
// `gemm_block` is the serial version, for kernels that have their own parallel loop. Several threads call source and epilogue
// at once. The epilogue is called once for each row and run of columns; for a row, in the order of the columns. gemm_block
// reads all of its rows of A before it writes anything, so a work item that computes all columns may overwrite A with C.
//
// Each element of C is the sum of partial sums over 256 consecutive k; each partial sum starts at zero and uses fma in order of
// k.
//
// With Factors::bf16, both sides are rounded to bfloat16; their products are exact, and sums are float32. Instead of one k at a
// time, two are added: k + half, then k, where half is half of the (at most 256) k of the partial sum, rounded up. Processors
// with AVX-512 BF16 do this in one instruction (VDPBF16PS), twice as fast as fma; others use two fma, with the same bits
// unless a factor or a sum is subnormal, because the instruction takes those as zeros:
//
//     pack_columns<Factors::bf16>(weight, ldw, k, n, packed, threads);       // packed_floats<Factors::bf16>(k, n) floats
//     gemm(m, PanelsOf<Factors::bf16>{packed, k, n}, threads, source, epilogue);
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

enum class Factors { f32, bf16 };
template <class T>
constexpr Factors factors_of = std::is_same_v<T, bf16> ? Factors::bf16 : Factors::f32;

// Whether two k are kept together, as bfloat16 in the bits of one float: the first in its lower half.
#if defined(__AVX512BF16__)
template <Factors factors>
constexpr bool paired = factors == Factors::bf16;
#else
template <Factors>
constexpr bool paired = false;
#endif

DMTL_INLINE float pair_of(float first, float second) { return float_of(bf16_bits(first) | bf16_bits(second) << 16); }

// The number of partial sums, of k in partial sum s, and of floats (or pairs) that hold `count` k of a partial sum, or all k.
inline int64_t slices_of(int64_t k) { return k > 0 ? (k + kDepth - 1) / kDepth : 1; }
inline int64_t slice_size(int64_t k, int64_t s) { return k - s * kDepth < kDepth ? k - s * kDepth : kDepth; }
template <Factors factors>
int64_t held(int64_t count) {
    return paired<factors> ? (count + 1) / 2 : count;
}
template <Factors factors>
int64_t all_held(int64_t k) {
    return k / kDepth * held<factors>(kDepth) + held<factors>(k % kDepth);
}

template <Factors factors = Factors::f32>
struct PanelsOf {
    const float* data;
    int64_t k, n;
    int64_t count() const { return lane_groups(n); }
    int64_t stride() const { return all_held<factors>(k) * kLanes16; }
    const float* panel(int64_t p) const { return data + p * stride(); }
};
using Panels = PanelsOf<>;

template <Factors factors = Factors::f32>
int64_t packed_floats(int64_t k, int64_t n) {
    return padded_to_lanes(n) * all_held<factors>(k);
}

// packed = panels of B, where b(r, c) is the element of B at row r and column c.
template <Factors factors = Factors::f32, class Element>
void pack_panels(int64_t k, int64_t n, float* packed, int threads, const Element& b) {
    const int64_t panels = lane_groups(n);
    parallel_for(panels, k * n < kSerialBelow ? 1 : threads, [&](int64_t p) {
        const int64_t column = p * kLanes16;
        const int64_t width = n - column < kLanes16 ? n - column : kLanes16;
        float* out = packed + column * all_held<factors>(k);
        for (int64_t s = 0; s < slices_of(k); ++s) {
            const int64_t first = s * kDepth, count = slice_size(k, s), rows = held<factors>(count);
            for (int64_t r = first; r < first + rows; ++r, out += kLanes16) {
                const auto element = [&](int64_t c) {
                    const float low = b(r, column + c);
                    if constexpr (!paired<factors>) return low;
                    return pair_of(low, r + rows < first + count ? b(r + rows, column + c) : 0.0f);
                };
                if (width == kLanes16) {
#pragma omp simd
                    for (int64_t c = 0; c < kLanes16; ++c) out[c] = element(c);
                } else {
                    for (int64_t c = 0; c < kLanes16; ++c) out[c] = c < width ? element(c) : 0.0f;
                }
            }
        }
    });
}

template <Factors factors = Factors::f32, class T>
void pack_rows(const T* b, int64_t ldb, int64_t k, int64_t n, float* packed, int threads) {
    static_assert(factors == Factors::f32 || std::is_same_v<T, bf16>);
    pack_panels<factors>(k, n, packed, threads, [=](int64_t r, int64_t c) { return load(b + r * ldb + c); });
}

// Blocks of 16 x 16 are read along the rows of the weight, because 16 rows that are a power of two apart share cache sets.
template <Factors factors = Factors::f32, class T>
void pack_columns(const T* weight, int64_t ldw, int64_t k, int64_t n, float* packed, int threads) {
    static_assert(factors == Factors::f32 || std::is_same_v<T, bf16>);
    const int64_t panels = lane_groups(n);
    parallel_for(panels, k * n < kSerialBelow ? 1 : threads, [&](int64_t p) {
        const int64_t column = p * kLanes16, width = n - column < kLanes16 ? n - column : kLanes16;
        float* out = packed + column * all_held<factors>(k);
        alignas(64) float block[kLanes16][kLanes16] = {};
        for (int64_t s = 0; s < slices_of(k); ++s) {
            const int64_t count = slice_size(k, s), rows = held<factors>(count), seconds = count - rows;
            for (int64_t r = 0; r < rows; r += kLanes16) {
                const int64_t size = rows - r < kLanes16 ? rows - r : kLanes16;
                for (int64_t c = 0; c < width; ++c) {
                    const T* from = weight + (column + c) * ldw + s * kDepth + r;
                    if (!paired<factors>)
                        for (int64_t i = 0; i < size; ++i) block[c][i] = load(from + i);
                    else
                        for (int64_t i = 0; i < size; ++i)
                            block[c][i] = pair_of(load(from + i), r + i < seconds ? load(from + rows + i) : 0.0f);
                }
                for (int64_t i = 0; i < size; ++i, out += kLanes16)
                    for (int64_t c = 0; c < kLanes16; ++c) out[c] = block[c][i];
            }
        }
    });
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

// Epilogues: write rows of `out`, `stride` apart, in their storage type.
template <class T>
struct Store {
    T* out;
    int64_t stride;
    void operator()(int64_t row, int64_t column, const float* values, int64_t count) const {
        T* to = out + row * stride + column;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) store(to + j, values[j]);
    }
};

template <class T>
struct StoreBiased {
    T* out;
    int64_t stride;
    const T* bias;  // of the columns
    void operator()(int64_t row, int64_t column, const float* values, int64_t count) const {
        T* to = out + row * stride + column;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) store(to + j, values[j] + load(bias + column + j));
    }
};

template <class Source, class = void>
struct ByColumns : std::false_type {};
template <class Source>
struct ByColumns<Source, std::void_t<decltype(Source::by_columns)>> : std::bool_constant<Source::by_columns> {};

// Rounds rows of a tile, as a source wrote them, to the factors of a product.
template <Factors factors>
void round_factors(float* a, int64_t rows, int64_t count) {
    if constexpr (factors == Factors::bf16)
        for (int64_t r = 0; r < rows; ++r, a += kTileStride) {
#if defined(__AVX512BF16__)
            const int64_t half = held<factors>(count);
            if (count % 2 == 1) a[count] = 0.0f;
            int64_t c = 0;
            for (; c + kLanes16 <= half; c += kLanes16)
                F32x16::pairs(F32x16::load(a + c), F32x16::load(a + half + c)).store(a + c);
            for (; c < half; ++c) a[c] = pair_of(a[c], a[half + c]);
#else
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) a[c] = float_of(bf16_bits(a[c]) << 16);
#endif
        }
}

// What later tiles will read: one cache line is prefetched for each k, so that loads from memory are spread over the products.
// Products whose packed side comes from memory are 7 to 18 % faster with it. (Prefetching the columns in use made plain
// products 25 % slower.)
struct Ahead {
    const float* line;
    int64_t step;  // to the next line; 0 if there is nothing to prefetch
};

// Sets out[rows, 16 vectors] to, or adds to it, one partial sum: a[rows, depth] times panels that start at b and are b_stride
// floats apart.
template <Factors factors, int rows, int vectors, bool by_columns>
void tile_product(const float* a, const float* b, int64_t b_stride, int64_t depth, bool add, Ahead ahead, float* out,
                  int64_t out_stride) {
    F32x16 sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[r][v] = F32x16::zero();
    const auto add_product = [&](int64_t k) __attribute__((always_inline)) {
        F32x16 column[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) column[v] = F32x16::load(b + v * b_stride + k * kLanes16);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const F32x16 x = F32x16::all(by_columns ? a[k * kColumnStride + r] : a[r * kTileStride + k]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
#if defined(__AVX512BF16__)
                if constexpr (paired<factors>) {
                    sum[r][v] = fma_pairs(x, column[v], sum[r][v]);
                    continue;
                }
#endif
                sum[r][v] = fma(x, column[v], sum[r][v]);
            }
        }
    };
    const int64_t half = factors == Factors::bf16 ? (depth + 1) / 2 : depth;
    for (int64_t k = 0; k < half; ++k) {
        __builtin_prefetch(ahead.line + k * ahead.step);
        if (factors == Factors::bf16 && !paired<factors> && half + k < depth) add_product(half + k);
        add_product(k);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            float* to = out + r * out_stride + v * kLanes16;
            (add ? F32x16::load(to) + sum[r][v] : sum[r][v]).store(to);
        }
}

template <Factors factors, int rows, bool by_columns>
void tile_rows(int64_t count, int vectors, const float* a, const float* b, int64_t b_stride, int64_t depth, bool add,
               Ahead ahead, float* out, int64_t out_stride) {
    if constexpr (rows > 0) {
        if (count < rows)
            return tile_rows<factors, rows - 1, by_columns>(count, vectors, a, b, b_stride, depth, add, ahead, out, out_stride);
        if (vectors == 1)
            return tile_product<factors, rows, 1, by_columns>(a, b, b_stride, depth, add, ahead, out, out_stride);
        if constexpr (kTileVectors == 2)
            tile_product<factors, rows, 2, by_columns>(a, b, b_stride, depth, add, ahead, out, out_stride);
    }
}

// out[rows, 16 vectors] = a tile of A times the panels from p on, for all k. Slice s of the tile, the k of a partial sum, is at
// a + s * kSliceFloats. Lines [fetched, unread) of the next panels are prefetched; returns the first line that was not.
template <bool by_columns = false, Factors factors>
int64_t multiply_tile(int64_t rows, const float* a, const PanelsOf<factors>& b, int64_t p, int vectors, int64_t fetched,
                      int64_t unread, float* out, int64_t out_stride) {
    const float* panel = b.panel(p);
    for (int64_t s = 0; s < slices_of(b.k); ++s, a += kSliceFloats) {
        const int64_t depth = slice_size(b.k, s);
        const Ahead ahead = fetched < unread ? Ahead{b.panel(p + vectors) + fetched * kLanes16, kLanes16} : Ahead{panel, 0};
        tile_rows<factors, kTileRows, by_columns>(rows, vectors, a, panel, b.stride(), depth, s > 0, ahead, out, out_stride);
        panel += held<factors>(depth) * kLanes16;
        fetched += held<factors>(depth);
    }
    return fetched;
}

// Reads rows of A as a tile, in slices for `multiply_tile`.
template <Factors factors, class Source>
void load_tile(const Source& source, int64_t row, int64_t rows, int64_t k, float* a) {
    constexpr bool by_columns = ByColumns<Source>::value;
    static_assert(!by_columns || factors == Factors::f32);
    for (int64_t s = 0; s < slices_of(k); ++s, a += kSliceFloats) {
        source(row, rows, s * kDepth, slice_size(k, s), a, by_columns ? kColumnStride : kTileStride);
        round_factors<factors>(a, rows, slice_size(k, s));
    }
}

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// Part i of [0, total) in `parts` nearly equal parts.
inline Range share(int64_t total, int64_t parts, int64_t i) { return {total * i / parts, total * (i + 1) / parts}; }

// Computes some rows of C and panels of B, serially.
template <Factors factors = Factors::f32, class Source, class Epilogue>
void gemm_block(Range rows, const PanelsOf<factors>& b, Range panels, const Source& source, const Epilogue& epilogue) {
    constexpr int64_t widest = kTileVectors * kLanes16;
    const int64_t tiles = (rows.size() + kTileRows - 1) / kTileRows, tile_floats = slices_of(b.k) * kSliceFloats;
    float* a = Workspace::floats(Slot::a_block, tiles * tile_floats);
    for (int64_t t = 0; t < tiles; ++t) {
        const Range part = share(rows.size(), tiles, t);
        load_tile<factors>(source, rows.begin + part.begin, part.size(), b.k, a + t * tile_floats);
    }
    for (int64_t p = panels.begin; p < panels.end; p += kTileVectors) {
        const int vectors = panels.end - p < kTileVectors ? 1 : kTileVectors;
        const int64_t column = p * kLanes16;
        const int64_t width = b.n - column < vectors * kLanes16 ? b.n - column : vectors * kLanes16;
        const int64_t unread = p + 2 * kTileVectors <= panels.end ? kTileVectors * b.stride() / kLanes16 : 0;
        int64_t fetched = 0;
        for (int64_t t = 0; t < tiles; ++t) {
            alignas(64) float tile[kTileRows][widest];
            const Range part = share(rows.size(), tiles, t);
            fetched = multiply_tile<ByColumns<Source>::value>(part.size(), a + t * tile_floats, b, p, vectors, fetched, unread,
                                                              tile[0], widest);
            for (int64_t r = 0; r < part.size(); ++r) {
                const int64_t row = rows.begin + part.begin + r;
                if (width == widest)
                    epilogue(row, column, tile[r], widest);  // here the count is a compile-time constant
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

template <Factors factors = Factors::f32, class Source, class Epilogue>
void gemm(int64_t m, const PanelsOf<factors>& b, int threads, const Source& source, const Epilogue& epilogue) {
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
