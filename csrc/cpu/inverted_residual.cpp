// An inverted residual of channels-last maps in one pass: 1x1 expansion, depthwise convolution, 1x1 projection, each with its
// bias, and the shortcut. Compiled once per instruction set (DMTL_ISA).
//
// The expanded map has six times the channels of the input. It is computed a band of rows at a time and read from the cache.
// It lies in blocks of 16 channels, [block][row][width + k - 1][16], with zeros left and right of the map, so that the depthwise
// convolution's inner loops have no conditions and its sums stay in registers.
#include "dmtl/gemm.h"
#include "dmtl/kernel_table.h"
#include "dmtl/storage.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kWholeFloats = 256 * 1024;  // expanded maps up to this size are computed at once, all threads on each layer
constexpr int64_t kBandFloats = 64 * 1024;    // of larger ones a thread computes bands of about this size
constexpr int64_t kBandsPerThread = 4;        // pieces of the work, so that a slow thread has fewer of them
constexpr int64_t kLeastHalos = 4;            // a piece has at least four times the rows that its neighbour expands, too

// x has height x width pixels and `channels` channels, out has out_height x out_width and n.
struct InvertedResidualParams {
    void* out;
    const void* x;
    const float *expand, *expand_bias;    // panels [channels, hidden], [hidden]; null: hidden is channels
    const float *taps, *taps_bias;        // [hidden / 16, k k, 16], [hidden]
    const float *project, *project_bias;  // panels [hidden, n], [n]
    int64_t images, channels, height, width, hidden, n, out_height, out_width, k, stride, padding;
    int64_t residual;  // whether to add x
    float high;        // upper bound of the activations

    int64_t blocks() const { return lane_groups(hidden); }
    int64_t padded_width() const { return width + k - 1; }
    int64_t row_floats() const { return padded_width() * blocks() * kLanes16; }
};

constexpr Field kFields[] = {
    DMTL_FIELDS(InvertedResidualParams, out, x, expand, expand_bias, taps, taps_bias, project, project_bias, images, channels),
    DMTL_FIELDS(InvertedResidualParams, height, width, hidden, n, out_height, out_width, k, stride, padding, residual, high),
};

// Rows are counted through all images. Expanded row g lies in slot g % slots.
struct Buffers {
    float* expanded;  // [block][slot][padded width][16]
    float* filtered;  // [block][pixel of the band][16]
    int64_t slots, pixels;
    const InvertedResidualParams& p;

    // At least room for `slots` expanded rows and `rows` rows of the output, in this thread's memory.
    Buffers(const InvertedResidualParams& params, int64_t slot_count, int64_t rows)
        : slots(slot_count), pixels(rows * params.out_width), p(params) {
        const int64_t floats = slots * p.row_floats();
        expanded = Workspace::floats(Slot::maps, floats + pixels * p.blocks() * kLanes16);
        filtered = expanded + floats;
        const bool tail = p.hidden % kLanes16 != 0;
        for (int64_t b = 0; b < p.blocks(); ++b)
            for (int64_t s = 0; s < slots; ++s) {
                float* row = slot(b, s);
                const int64_t last = tail && b + 1 == p.blocks() ? p.padded_width() : p.padding;
                for (int64_t i = 0; i < last * kLanes16; ++i) row[i] = 0.0f;
                for (int64_t i = (p.padding + p.width) * kLanes16; i < p.padded_width() * kLanes16; ++i) row[i] = 0.0f;
            }
    }
    float* slot(int64_t block, int64_t s) const { return expanded + (block * slots + s) * p.padded_width() * kLanes16; }
    float* filtered_at(int64_t block, int64_t pixel) const { return filtered + (block * pixels + pixel) * kLanes16; }
};

// Expanded rows [first, last).
template <class T>
void expand_rows(const InvertedResidualParams& p, const Buffers& to, int64_t first, int64_t last, int threads) {
    const T* x = static_cast<const T*>(p.x) + first * p.width * p.channels;
    const int64_t pixels = (last - first) * p.width;
    const auto target = [&](int64_t pixel, int64_t column) {
        return to.slot(column / kLanes16, (first + pixel / p.width) % to.slots) + (p.padding + pixel % p.width) * kLanes16;
    };
    if (p.expand == nullptr) {
        for (int64_t i = 0; i < pixels; ++i)
            for (int64_t c = 0; c < p.channels; c += kLanes16) {
                float* out = target(i, c);
                const int64_t count = p.channels - c < kLanes16 ? p.channels - c : kLanes16;
                for (int64_t l = 0; l < count; ++l) out[l] = load(x + i * p.channels + c + l);
            }
        return;
    }
    const auto write = [&](int64_t pixel, int64_t column, const float* v, int64_t count) {
        for (int64_t c = 0; c < count; c += kLanes16) {
            float* out = target(pixel, column + c);
            const int64_t lanes = count - c < kLanes16 ? count - c : kLanes16;
            const F32x16 sum = F32x16::load(v + c, lanes) + F32x16::load(p.expand_bias + column + c, lanes);
            min(F32x16::all(p.high), max(F32x16::zero(), sum)).store(out, lanes);
        }
    };
    gemm(pixels, {p.expand, p.channels, p.hidden}, threads, RowsOf<T>{x, p.channels}, write);
}

// `count` neighbouring pixels of one block, from the rows [first, last) of the k that the filter covers.
template <int k, int stride, int count>
void filter_pixels(const float* const* rows, int64_t offset, int first, int last, const float* taps, F32x16 bias, F32x16 high,
                   float* out) {
    F32x16 sum[count];
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) sum[i] = F32x16::zero();
    for (int u = first; u < last; ++u) {
        const float* row = rows[u] + offset;
#pragma GCC unroll 5
        for (int v = 0; v < k; ++v) {
            const F32x16 tap = F32x16::load(taps + (u * k + v) * kLanes16);
#pragma GCC unroll 8
            for (int i = 0; i < count; ++i) sum[i] = fma(tap, F32x16::load(row + (i * stride + v) * kLanes16), sum[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) min(high, max(F32x16::zero(), sum[i] + bias)).store(out + i * kLanes16);
}

// The depthwise convolution of output row `row` for one block of channels.
template <int k, int stride>
void filter_row(const InvertedResidualParams& p, const Buffers& at, int64_t row, int64_t block, float* out) {
    const int64_t image = row / p.out_height, top = row % p.out_height * stride - p.padding;
    const int first = top < 0 ? static_cast<int>(-top) : 0;
    const int last = top + k > p.height ? static_cast<int>(p.height - top) : k;
    const float* rows[k] = {};
    for (int u = first; u < last; ++u) rows[u] = at.slot(block, (image * p.height + top + u) % at.slots);
    const float* taps = p.taps + block * k * k * kLanes16;
    const int64_t channel = block * kLanes16, lanes = p.hidden - channel < kLanes16 ? p.hidden - channel : kLanes16;
    const F32x16 bias = F32x16::load(p.taps_bias + channel, lanes), high = F32x16::all(p.high);
    int64_t j = 0;
    for (; j + kSumsAtOnce <= p.out_width; j += kSumsAtOnce)
        filter_pixels<k, stride, kSumsAtOnce>(rows, j * stride * kLanes16, first, last, taps, bias, high, out + j * kLanes16);
    for (; j < p.out_width; ++j)
        filter_pixels<k, stride, 1>(rows, j * stride * kLanes16, first, last, taps, bias, high, out + j * kLanes16);
}

// Output rows [first, last) of the depthwise convolution.
void filter_rows(const InvertedResidualParams& p, const Buffers& at, int64_t first, int64_t last, int threads) {
    const auto filter = p.k == 3 ? (p.stride == 1 ? filter_row<3, 1> : filter_row<3, 2>)
                                 : (p.stride == 1 ? filter_row<5, 1> : filter_row<5, 2>);
    parallel_for(p.blocks(), threads, [&](int64_t block) {
        for (int64_t row = first; row < last; ++row)
            filter(p, at, row, block, at.filtered_at(block, (row - first) * p.out_width));
    });
}

// The left side of the projection: pixels of the band, blocks of channels joined.
struct Filtered {
    const Buffers& from;
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t c = 0; c < count; c += kLanes16) {  // k is a multiple of 16
            const int64_t lanes = count - c < kLanes16 ? count - c : kLanes16;
            const float* block = from.filtered_at((k + c) / kLanes16, row);
            for (int64_t r = 0; r < rows; ++r) F32x16::load(block + r * kLanes16).store(out + r * stride + c, lanes);
        }
    }
};

// Output rows [first, last).
template <class T>
void project_rows(const InvertedResidualParams& p, const Buffers& from, int64_t first, int64_t last, int threads) {
    const int64_t begin = first * p.out_width * p.n;
    T* out = static_cast<T*>(p.out) + begin;
    const T* shortcut = p.residual ? static_cast<const T*>(p.x) + begin : nullptr;
    const auto write = [&](int64_t pixel, int64_t column, const float* v, int64_t count) {
        const int64_t at = pixel * p.n + column;
        if (shortcut != nullptr) {
#pragma omp simd
            for (int64_t c = 0; c < count; ++c)
                store(out + at + c, v[c] + p.project_bias[column + c] + load(shortcut + at + c));
        } else {
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) store(out + at + c, v[c] + p.project_bias[column + c]);
        }
    };
    gemm((last - first) * p.out_width, {p.project, p.hidden, p.n}, threads, Filtered{from}, write);
}

// Output rows [first, last) of one image, in bands of `band` rows.
template <class T>
void piece(const InvertedResidualParams& p, int64_t image, int64_t first, int64_t last, int64_t band) {
    const Buffers buffers(p, band * p.stride + p.k - p.stride, band);
    const int64_t out_base = image * p.out_height, base = image * p.height;
    int64_t expanded = first * p.stride - p.padding < 0 ? 0 : first * p.stride - p.padding;
    for (int64_t row = first; row < last; row += band) {
        const int64_t end = row + band < last ? row + band : last;
        const int64_t below = (end - 1) * p.stride - p.padding + p.k;
        const int64_t needed = below < p.height ? below : p.height;
        if (needed > expanded) expand_rows<T>(p, buffers, base + expanded, base + needed, 1);
        expanded = needed > expanded ? needed : expanded;
        filter_rows(p, buffers, out_base + row, out_base + end, 1);
        project_rows<T>(p, buffers, out_base + row, out_base + end, 1);
    }
}

template <class T>
void inverted_residual(const InvertedResidualParams& p, int threads) {
    const int64_t rows = p.images * p.height, out_rows = p.images * p.out_height;
    if (out_rows * p.out_width * p.n == 0) return;
    expect_writes(p.out, out_rows * p.out_width * p.n * static_cast<int64_t>(sizeof(T)), threads);
    if (rows * p.row_floats() <= kWholeFloats) {
        const Buffers buffers(p, rows, out_rows);
        expand_rows<T>(p, buffers, 0, rows, threads);
        filter_rows(p, buffers, 0, out_rows, threads);
        return project_rows<T>(p, buffers, 0, out_rows, threads);
    }
    const int64_t fitting = (kBandFloats / p.row_floats() - (p.k - p.stride)) / p.stride;
    const int64_t band = fitting > p.out_height ? p.out_height : fitting > 1 ? fitting : 1;
    const int64_t bands = (p.out_height + band - 1) / band;
    // Neighbours both expand k - stride rows, which limits the number of pieces, but every thread gets one.
    const int64_t worth = p.out_height * p.stride / (kLeastHalos * (p.k - p.stride));
    const int64_t least = (threads + p.images - 1) / p.images, wanted = (kBandsPerThread * threads + p.images - 1) / p.images;
    const int64_t limit = worth > least ? worth : least, most = limit < bands ? limit : bands;
    const int64_t pieces = wanted < most ? wanted : most;
    parallel_for(p.images * pieces, threads, [&](int64_t item) {
        const Range part = share(bands, pieces, item % pieces);
        const int64_t last = part.end * band < p.out_height ? part.end * band : p.out_height;
        piece<T>(p, item / pieces, part.begin * band, last, band);
    });
}

DMTL_STORAGE_KERNEL(forward, InvertedResidualParams, inverted_residual)

}  // namespace

DMTL_KERNELS(inverted_residual, cpu_kernel<InvertedResidualParams, &forward>("inverted_residual", kFields))

}  // namespace dmtl::DMTL_ISA
