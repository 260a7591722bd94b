// The backward of conv3x3 except for the data gradient (csrc/cpu/conv3x3.cpp). The gate applies ReLU's derivative and sums over
// pixels, which gives the gradients of biases and tap biases. The weight gradient uses Winograd's transforms: it sums products
// of transformed patches and transformed gradients over the tiles. The library's weight gradient is not used, because its bits
// change with the number of threads. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/conv3x3_cpu.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

// d_weights has the layout of the weights in conv3x3_cpu.h, with k channels of x and n of grad. Tasks without rows are not
// written.
struct WeightGradientParams {
    float* d_weights[kMostTasks];
    const float* x;     // [rows, height, width, k]
    const float* grad;  // [rows, height, width, n]
    int64_t counts[kMostTasks];
    int64_t tasks, height, width, k, n, stride_k, stride_n, stride_tap;
};

// gated = grad, or 0 where out <= 0; both are null without ReLU. The sums are those of gated for each task.
struct GateParams {
    float* gated;
    const float* grad;
    const float* out;
    float* d_biases[kMostTasks];  // [n] or null
    float* d_taps[kMostTasks];    // [n, 3, 3] or null
    int64_t counts[kMostTasks];
    int64_t tasks, height, width, n;
};

// -- The gate. For each line of pixels it stores the sum, the first and the last pixel; lines are then added up in order by
// task.

void gate_line(const GateParams& p, int64_t line, float* sums) {
    const int64_t stride = padded_to_lanes(p.n);
    float *first = sums + stride, *last = first + stride;
    for (int64_t x = 0; x < p.width; ++x)
        for (int64_t c = 0; c < p.n; c += kLanes16) {
            const int64_t at = (line * p.width + x) * p.n + c, count = p.n - c < kLanes16 ? p.n - c : kLanes16;
            F32x16 value = F32x16::load(p.grad + at, count);
            if (p.out != nullptr) {
                value = gated(value, F32x16::load(p.out + at, count));
                value.store(p.gated + at, count);
            }
            (x == 0 ? value : F32x16::load(sums + c) + value).store(sums + c);
            if (x == 0) value.store(first + c);
            if (x + 1 == p.width) value.store(last + c);
        }
}

// For sixteen channels of one task: sums over the pixels whose tap (a, b) is inside the image. The middle tap always is.
void add_lines(const GateParams& p, int64_t task, const float* lines, int64_t images, int64_t c) {
    const int64_t stride = padded_to_lanes(p.n), count = p.n - c < kLanes16 ? p.n - c : kLanes16;
    F32x16 sums[kTaps][kTaps];
    for (auto& row : sums)
        for (F32x16& sum : row) sum = F32x16::zero();
    for (int64_t line = 0; line < images * p.height; ++line) {
        const float* from = lines + line * kTaps * stride + c;
        const F32x16 all = F32x16::load(from), first = F32x16::load(from + stride), last = F32x16::load(from + 2 * stride);
        const F32x16 inside[kTaps] = {all - first, all, all - last};
        const int64_t y = line % p.height;
        for (int a = 0; a < kTaps; ++a)
            for (int b = 0; b < kTaps; ++b)
                if ((a != 0 || y > 0) && (a != 2 || y + 1 < p.height)) sums[a][b] = sums[a][b] + inside[b];
    }
    if (p.d_biases[task] != nullptr) sums[1][1].store(p.d_biases[task] + c, count);
    if (p.d_taps[task] == nullptr) return;
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
        float lanes[kLanes16];
        sums[tap / kTaps][tap % kTaps].store(lanes);
        for (int64_t l = 0; l < count; ++l) p.d_taps[task][(c + l) * kTaps * kTaps + tap] = lanes[l];
    }
}

void gate(const GateParams& p, DType, int threads) {
    int64_t rows = 0;
    for (int64_t task = 0; task < p.tasks; ++task) rows += p.counts[task];
    const int64_t stride = kTaps * padded_to_lanes(p.n), pixels = rows * p.height * p.width;
    if (p.gated != nullptr) expect_writes(p.gated, pixels * p.n * static_cast<int64_t>(sizeof(float)), threads);
    if (pixels * p.n < kSerialBelow) threads = 1;
    float* lines = Workspace::floats(Slot::other, rows * p.height * stride);
    parallel_for(rows * p.height, threads, [&](int64_t line) { gate_line(p, line, lines + line * stride); });
    const int64_t panels = lane_groups(p.n);
    for (int64_t task = 0; task < p.tasks; lines += p.counts[task++] * p.height * stride)
        parallel_for(panels, threads, [&](int64_t c) { add_lines(p, task, lines, p.counts[task], c * kLanes16); });
}

// -- The weight gradient.

// Each thread transforms all gradients itself if the transformed ones of all threads have at most this many numbers. This is
// faster than reading those that another core has just written.
constexpr int64_t kOwnGradients = int64_t{6} << 20;

// Transforms gradients to panels of a product over the tiles of a block: [frequency][panel of 16 channels][tile][16].
void transform_gradient_tile(const float* image, const Tiling& t, const Tiling::Place& p, int64_t channels, float* panels,
                             int64_t plane, int64_t tiles, int64_t slot) {
    for (int64_t c = 0; c < channels; c += kLanes16) {
        const int64_t count = channels - c < kLanes16 ? channels - c : kLanes16;
        F32x16 y[kOut * kOut], v[kFrequencies];
        for (int i = 0; i < kOut; ++i)
            for (int j = 0; j < kOut; ++j) {
                const bool inside = p.y + i < t.height && p.x + j < t.width;
                const float* from = image + ((p.y + i) * t.width + p.x + j) * channels + c;
                y[i * kOut + j] = inside ? F32x16::load(from, count) : F32x16::zero();
            }
        transform_gradients(y, v);
        for (int f = 0; f < kFrequencies; ++f) v[f].store(panels + f * plane + c * tiles + slot * kLanes16);
    }
}

// Weight matrices are processed in pieces of some input channels (rows) and some output channels (columns), with all
// frequencies of a piece together. So the sums, which take four times the memory of the weights, are still in the cache when
// they are transformed back. Each thread transforms the patches of its own rows.
struct Pieces {
    static constexpr int64_t most_rows = 64, most_columns = 256;
    static constexpr int64_t stride = most_columns + kLanes16;       // floats of a row of sums
    static constexpr int64_t plane = most_rows * stride + kLanes16;  // floats of the sums of one frequency
    static constexpr int64_t floats = kFrequencies * plane;
    int64_t k, panels, height, down, across;
    Pieces(int64_t k, int64_t n, int threads) : k(k), panels(lane_groups(n)) {
        const int64_t each = (k + most_rows * threads - 1) / (most_rows * threads);  // pieces of a thread
        height = padded_to_lanes((k + each * threads - 1) / (each * threads));
        down = (k + height - 1) / height;
        across = (n + most_columns - 1) / most_columns;
    }
    Range rows(int64_t i) const { return {i * height, (i + 1) * height < k ? (i + 1) * height : k}; }
    Range columns(int64_t i) const { return share(panels, across, i); }  // in panels
};

// The transformed gradients of a block of tiles.
struct Gradients {
    const float* data;
    int64_t plane;
    Range tiles;
};

Gradients transform_gradients_of(const WeightGradientParams& p, const Tiling& tiling, Range block, int threads) {
    const int64_t tiles = block.size(), pixels = p.height * p.width, plane = packed_floats(tiles, p.n) + kLanes16;
    float* data = Workspace::floats(Slot::maps, kFrequencies * plane);
    parallel_for(tiles, threads, [&](int64_t slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        transform_gradient_tile(p.grad + place.row * pixels * p.n, tiling, place, p.n, data, plane, tiles, slot);
    });
    return {data, plane, block};
}

Spectrum transform_patches(const WeightGradientParams& p, const Tiling& tiling, Range block, Range rows) {
    Spectrum s;
    s.stride = Pieces::most_rows + kLanes16;
    s.plane = block.size() * s.stride + kLanes16;
    s.data = Workspace::floats(Slot::other, kFrequencies * s.plane);
    for (int64_t slot = 0; slot < block.size(); ++slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        transform_tile_in(p.x + place.row * p.height * p.width * p.k, tiling, place, p.k, rows, s, slot);
    }
    return s;
}

// Sets (or adds to) the sums [frequency][row][column] of a piece the products of a block's tiles.
void add_products(const Spectrum& patches, const Gradients& g, int64_t n, int64_t rows, Range panels, bool add, float* sums) {
    for (int64_t f = 0; f < kFrequencies; ++f) {
        float* out = sums + f * Pieces::plane;
        gemm_block({0, rows}, {g.data + f * g.plane, g.tiles.size(), n}, panels,
                   ColumnsOf<float>{patches.data + f * patches.plane, patches.stride},
                   [=](int64_t row, int64_t column, const float* values, int64_t count) {
                       float* to = out + row * Pieces::stride + column - panels.begin * kLanes16;
#pragma omp simd
                       for (int64_t j = 0; j < count; ++j) to[j] = add ? to[j] + values[j] : values[j];
                   });
    }
}

// Transforms sums back in blocks of at most 16 rows and 8 columns, and writes along the contiguous direction of the weights.
void transform_back(const WeightGradientParams& p, const float* sums, Range rows, Range panels, float* d_weight) {
    constexpr int taps = kTaps * kTaps, width = 8, height = 16;
    const int64_t first = panels.begin * kLanes16, last = panels.end * kLanes16 < p.n ? panels.end * kLanes16 : p.n;
    const auto put = [&](int64_t column, int64_t row, int tap, float value) {
        d_weight[column * p.stride_n + row * p.stride_k + tap * p.stride_tap] = value;
    };
    for (int64_t column = first; column < last; column += width)
        for (int64_t row = rows.begin; row < rows.end; row += height) {
            float g[height][taps][width];
            const int64_t count = rows.end - row < height ? rows.end - row : height;
            const int64_t lanes = last - column < width ? last - column : width;
            for (int64_t r = 0; r < count; ++r)
                transform_weight_sums(sums + (row + r - rows.begin) * Pieces::stride + column - first, Pieces::plane, g[r][0],
                                      width);
            for (int64_t l = 0; l < lanes; ++l) {
                if (p.stride_tap < p.stride_k) {
                    for (int64_t r = 0; r < count; ++r)
                        for (int tap = 0; tap < taps; ++tap) put(column + l, row + r, tap, g[r][tap][l]);
                } else {
                    for (int tap = 0; tap < taps; ++tap)
                        for (int64_t r = 0; r < count; ++r) put(column + l, row + r, tap, g[r][tap][l]);
                }
            }
        }
}

// Processes the input channels of piece `item`. With several blocks of tiles, the sums wait in memory for the next block.
void process_piece(const WeightGradientParams& p, const Tiling& tiling, const Gradients& g, const Pieces& pieces, int64_t item,
                   float* waiting, bool first, bool last, float* d_weight) {
    const Range rows = pieces.rows(item);
    const Spectrum patches = transform_patches(p, tiling, g.tiles, rows);
    for (int64_t i = 0; i < pieces.across; ++i) {
        const Range panels = pieces.columns(i);
        float* sums = waiting != nullptr ? waiting + (item * pieces.across + i) * Pieces::floats
                                         : Workspace::floats(Slot::weights, Pieces::floats);
        add_products(patches, g, p.n, rows.size(), panels, !first, sums);
        if (last) transform_back(p, sums, rows, panels, d_weight);
    }
}

void weight_gradient_of(const WeightGradientParams& p, const Tiling& tiling, Range all, float* d_weight, int threads) {
    const Pieces pieces(p.k, p.n, threads);
    if (kFrequencies * packed_floats(all.size(), p.n) * threads <= kOwnGradients) {
        parallel_for(threads, threads, [&](int64_t t) {
            const Gradients g = transform_gradients_of(p, tiling, all, 1);
            for (int64_t item = t; item < pieces.down; item += threads)
                process_piece(p, tiling, g, pieces, item, nullptr, true, true, d_weight);
        });
        return;
    }
    const int64_t most = most_tiles(p.n, p.n, kLargeBlock), blocks = (all.size() + most - 1) / most;
    float* waiting = nullptr;
    if (blocks > 1) waiting = Workspace::floats(Slot::weights, pieces.down * pieces.across * Pieces::floats);
    for (int64_t b = 0; b < blocks; ++b) {
        const Range part = share(all.size(), blocks, b);
        const Gradients g = transform_gradients_of(p, tiling, {all.begin + part.begin, all.begin + part.end}, threads);
        parallel_for(pieces.down, threads, [&](int64_t item) {
            process_piece(p, tiling, g, pieces, item, waiting, b == 0, b + 1 == blocks, d_weight);
        });
    }
}

void weight_gradient(const WeightGradientParams& p, DType, int threads) {
    const Tiling tiling(p.height, p.width);
    int64_t first = 0;
    for (int64_t task = 0; task < p.tasks; ++task) {
        const int64_t tiles = p.counts[task] * tiling.per_row();
        if (tiles == 0) continue;
        expect_writes(p.d_weights[task], kTaps * kTaps * p.k * p.n * static_cast<int64_t>(sizeof(float)), threads);
        const int team = tiles * p.k * p.n < kSerialBelow ? 1 : threads;
        weight_gradient_of(p, tiling, {first, first + tiles}, p.d_weights[task], team);
        first += tiles;
    }
    Workspace::shrink(kKeptBytes);
}

constexpr Field kWeightGradientFields[] = {
    DMTL_FIELDS(WeightGradientParams, d_weights, x, grad, counts, tasks, height, width, k, n, stride_k, stride_n, stride_tap),
};
constexpr Field kGateFields[] = {DMTL_FIELDS(GateParams, gated, grad, out, d_biases, d_taps, counts, tasks, height, width, n)};

}  // namespace

DMTL_KERNELS(conv3x3_gradient,
             cpu_kernel<WeightGradientParams, &weight_gradient>("conv3x3_weight_gradient", kWeightGradientFields),
             cpu_kernel<GateParams, &gate>("conv3x3_gate", kGateFields))

}  // namespace dmtl::DMTL_ISA
