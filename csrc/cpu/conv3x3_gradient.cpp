// What the backward of conv3x3 needs beside the data gradient (csrc/cpu/conv3x3.cpp): ReLU's gate with the sums over pixels,
// which are the gradients of biases and tap biases, and the weight gradient by Winograd's transforms, products of transformed
// patches and transformed gradients over the tiles. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/conv3x3_cpu.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

// d_weights: laid out as conv3x3_cpu.h's weights, k channels of x, n of grad; tasks without rows are left alone.
struct WeightGradientParams {
    float* d_weights[kMostTasks];
    const float* x;     // [rows, height, width, k]
    const float* grad;  // [rows, height, width, n]
    int64_t counts[kMostTasks];
    int64_t tasks, height, width, k, n, stride_k, stride_n, stride_tap;
};

// gated = grad where not out <= 0, null where there is no ReLU (then out is null, too); sums of it for each task.
struct GateParams {
    float* gated;
    const float* grad;
    const float* out;
    float* d_biases[kMostTasks];  // [n] or null
    float* d_taps[kMostTasks];    // [n, 3, 3] or null
    int64_t counts[kMostTasks];
    int64_t tasks, height, width, n;
};

int64_t padded(int64_t channels) { return (channels + kLanes16 - 1) / kLanes16 * kLanes16; }

// -- The gate. A line of pixels leaves its sum, its first and its last pixel; tasks add their lines up in order.

void gate_line(const GateParams& p, int64_t line, float* sums) {
    const int64_t stride = padded(p.n);
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

// Sixteen channels of one task: sums over the pixels whose tap (a, b) is inside the image; the middle tap is inside everywhere.
void add_lines(const GateParams& p, int64_t task, const float* lines, int64_t images, int64_t c) {
    const int64_t stride = padded(p.n), count = p.n - c < kLanes16 ? p.n - c : kLanes16;
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
    const int64_t stride = kTaps * padded(p.n), pixels = rows * p.height * p.width;
    if (p.gated != nullptr) expect_writes(p.gated, pixels * p.n * static_cast<int64_t>(sizeof(float)), threads);
    if (pixels * p.n < (int64_t{1} << 14)) threads = 1;  // less than a thread's start is worth
    float* lines = Workspace::floats(Slot::other, rows * p.height * stride);
    parallel_for(rows * p.height, threads, [&](int64_t line) { gate_line(p, line, lines + line * stride); });
    const int64_t panels = padded(p.n) / kLanes16;
    for (int64_t task = 0; task < p.tasks; lines += p.counts[task++] * p.height * stride)
        parallel_for(panels, threads, [&](int64_t c) { add_lines(p, task, lines, p.counts[task], c * kLanes16); });
}

// -- The weight gradient.

// Transformed gradients as panels of a product over the block's tiles: [frequency][panel of 16 channels][tile][16].
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

// sums [frequency][k][n padded] (=|+=) the products of some tiles of one task.
void add_block(const WeightGradientParams& p, const Tiling& tiling, Range block, bool add, float* sums, int threads) {
    const int64_t tiles = block.size(), pixels = p.height * p.width, width = padded(p.n);
    Spectrum s;
    s.stride = padded(p.k) + 16;
    s.plane = (tiles * s.stride + 1023) / 1024 * 1024 + 16;
    const int64_t panel_plane = packed_floats(tiles, p.n) + kLanes16, sums_plane = p.k * width + kLanes16;
    s.data = Workspace::floats(Slot::maps, kFrequencies * (s.plane + panel_plane));
    float* panels = s.data + kFrequencies * s.plane;
    parallel_for(tiles, threads, [&](int64_t slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        const auto transform = tiling.inner(place) ? transform_tile_in<true> : transform_tile_in<false>;
        transform(p.x + place.row * pixels * p.k, tiling, place, p.k, s, slot);
        transform_gradient_tile(p.grad + place.row * pixels * p.n, tiling, place, p.n, panels, panel_plane, tiles, slot);
    });
    const int64_t pieces = row_blocks(p.k, tiles, 1);
    parallel_for(kFrequencies * pieces, threads, [&](int64_t item) {
        const int64_t f = item / pieces;
        const Panels gradients{panels + f * panel_plane, tiles, p.n};
        float* out = sums + f * sums_plane;
        gemm_block(share(p.k, pieces, item % pieces), gradients, {0, gradients.count()},
                   ColumnsOf<float>{s.data + f * s.plane, s.stride},
                   [=](int64_t row, int64_t column, const float* values, int64_t count) {
                       float* to = out + row * width + column;
#pragma omp simd
                       for (int64_t j = 0; j < count; ++j) to[j] = add ? to[j] + values[j] : values[j];
                   });
    });
}

void transform_back(const WeightGradientParams& p, const float* sums, float* d_weight, int threads) {
    const int64_t width = padded(p.n), plane = p.k * width + kLanes16;
    constexpr int64_t rows = 8;  // of an item: they are neighbours in d_weight
    parallel_for((p.k + rows - 1) / rows, threads, [&](int64_t item) {
        for (int64_t column = 0; column < p.n; column += 8)
            for (int64_t row = item * rows; row < p.k && row < (item + 1) * rows; ++row) {
                float g[kTaps * kTaps][8];
                transform_weight_sums(sums + row * width + column, plane, g[0], 8);
                const int64_t lanes = p.n - column < 8 ? p.n - column : 8;
                for (int64_t l = 0; l < lanes; ++l)
                    for (int tap = 0; tap < kTaps * kTaps; ++tap)
                        d_weight[(column + l) * p.stride_n + row * p.stride_k + tap * p.stride_tap] = g[tap][l];
            }
    });
}

void weight_gradient(const WeightGradientParams& p, DType, int threads) {
    const Tiling tiling(p.height, p.width);
    const int64_t most = most_tiles(p.k, p.n);
    float* sums = Workspace::floats(Slot::weights, kFrequencies * (p.k * padded(p.n) + kLanes16));
    int64_t first = 0;
    for (int64_t task = 0; task < p.tasks; ++task) {
        const int64_t tiles = p.counts[task] * tiling.per_row();
        if (tiles == 0) continue;
        const int64_t blocks = (tiles + most - 1) / most;
        const int team = tiles * p.k * p.n < (int64_t{1} << 14) ? 1 : threads;  // else less than a thread's start is worth
        for (int64_t b = 0; b < blocks; ++b) {
            const Range part = share(tiles, blocks, b);
            add_block(p, tiling, {first + part.begin, first + part.end}, b > 0, sums, team);
        }
        transform_back(p, sums, p.d_weights[task], team);
        first += tiles;
    }
}

constexpr Field kWeightGradientFields[] = {
    DMTL_FIELD(WeightGradientParams, d_weights), DMTL_FIELD(WeightGradientParams, x),
    DMTL_FIELD(WeightGradientParams, grad),      DMTL_FIELD(WeightGradientParams, counts),
    DMTL_FIELD(WeightGradientParams, tasks),     DMTL_FIELD(WeightGradientParams, height),
    DMTL_FIELD(WeightGradientParams, width),     DMTL_FIELD(WeightGradientParams, k),
    DMTL_FIELD(WeightGradientParams, n),         DMTL_FIELD(WeightGradientParams, stride_k),
    DMTL_FIELD(WeightGradientParams, stride_n),  DMTL_FIELD(WeightGradientParams, stride_tap),
};
constexpr Field kGateFields[] = {
    DMTL_FIELD(GateParams, gated),    DMTL_FIELD(GateParams, grad),   DMTL_FIELD(GateParams, out),
    DMTL_FIELD(GateParams, d_biases), DMTL_FIELD(GateParams, d_taps), DMTL_FIELD(GateParams, counts),
    DMTL_FIELD(GateParams, tasks),    DMTL_FIELD(GateParams, height), DMTL_FIELD(GateParams, width),
    DMTL_FIELD(GateParams, n),
};

}  // namespace

DMTL_KERNELS(conv3x3_gradient,
             cpu_kernel<WeightGradientParams, &weight_gradient>("conv3x3_weight_gradient", kWeightGradientFields),
             cpu_kernel<GateParams, &gate>("conv3x3_gate", kGateFields))

}  // namespace dmtl::DMTL_ISA
