// 3x3 convolution of channels-last maps, grouped by task, by Winograd's F(4x4, 3x3); the data gradient is the same with the
// weights flipped and exchanged. Compiled once per instruction set (DMTL_ISA).
// Tiles go through in blocks, those of all tasks in one row: transform the patches; then for some channels out at a time
// transform the weights (where they are not packed), multiply at each of the 36 frequencies, and transform back. In these
// chunks transformed weights and products take less memory, and no more time.
#include "dmtl/conv3x3_cpu.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kChunkFloats = int64_t{7} << 20;  // of transformed weights and products at a time
constexpr int64_t kGroupFloats = int64_t{3} << 20;  // of transformed weights of the tasks that share a block

// Consecutive tasks whose tiles are multiplied together.
struct Group {
    int64_t first, last;   // tasks
    Range tiles;           // among all tiles of the call
    const float* biases;   // tables of the tasks from `first` on, bias_floats each
    int64_t bias_stride, bias_floats;

    Biases task_biases(int64_t task) const {
        return {biases + (task - first) * bias_floats, bias_stride, bias_floats == bias_stride};
    }
};

// Some panels of the group's transformed weights, by task; frequencies `plane` floats apart.
struct Weights {
    const float* data[kMostTasks];
    int64_t plane;
};

// Channels out of a chunk: pairs of panels, nearly as many in each.
int64_t chunk_columns(const Conv3x3Params& p, int64_t tasks, int64_t tiles) {
    const int64_t pair = 2 * kLanes16, pairs = (p.n + pair - 1) / pair;
    const int64_t fitting = kChunkFloats / (kFrequencies * pair * (tasks * p.k + tiles));
    const int64_t chunks = fitting < 1 ? pairs : (pairs + fitting - 1) / fitting;
    return (pairs + chunks - 1) / chunks * pair;
}

// The caller's, or packed now.
Weights chunk_weights(const Conv3x3Params& p, const Group& g, Range panels, int threads) {
    Weights found{{}, weight_plane(p.k, p.n)};
    if (p.packed[0] != nullptr) {
        for (int64_t task = g.first; task < g.last; ++task)
            found.data[task - g.first] = p.packed[task] + panels.begin * p.k * kLanes16;
        return found;
    }
    found.plane = panels.size() * p.k * kLanes16 + kLanes16;
    const int64_t floats = kFrequencies * found.plane;
    float* space = Workspace::floats(Slot::weights, (g.last - g.first) * floats);
    PackParams pack{{}, {}, 0, p.k, p.n, p.stride_k, p.stride_n, p.stride_tap, p.flipped};
    for (int64_t task = g.first; task < g.last; ++task, space += floats) {
        found.data[task - g.first] = space;
        if (p.counts[task] == 0) continue;
        pack.packed[pack.tasks] = space;
        pack.weights[pack.tasks++] = p.weights[task];
    }
    pack_weights(pack, panels, found.plane, threads);
    return found;
}

// products = patches times `width` columns of the weights, of the block's tiles: an item is one frequency of some tiles of one
// task.
void multiply(const Conv3x3Params& p, const Group& g, const Tiling& tiling, Range block, int64_t width, const Weights& weights,
              const Spectrum& patches, const Spectrum& products, int threads) {
    const bool wide = patches.slice != kDepth;
    int64_t end = g.tiles.begin;
    for (int64_t task = g.first; task < g.last; ++task) {
        const int64_t begin = end > block.begin ? end : block.begin;
        end += p.counts[task] * tiling.per_row();
        const Range tiles{begin, end < block.end ? end : block.end};
        if (tiles.size() <= 0) continue;
        const int64_t pieces = wide ? (threads + 11) / 12 : row_blocks(tiles.size(), p.k, 1);
        parallel_for(kFrequencies * pieces, threads, [&](int64_t item) {
            const int64_t f = item / pieces, first = tiles.begin - block.begin;
            const float* a = patches.data + f * patches.plane + first * patches.stride;
            float* c = products.data + f * products.plane + first * products.stride;
            const Panels b{weights.data[task - g.first] + f * weights.plane, p.k, width};
            const auto write = [=](int64_t row, int64_t column, const float* values, int64_t count) {
                float* out = c + row * products.stride + column;
#pragma omp simd
                for (int64_t j = 0; j < count; ++j) out[j] = values[j];
            };
            const Range rows = share(tiles.size(), pieces, item % pieces);
            if (wide)
                gemm_block(rows, b, {0, b.count()}, TileRows{a, patches.slice}, write);
            else
                gemm_block(rows, b, {0, b.count()}, RowsOf<float>{a, patches.stride}, write);
        });
    }
}

int64_t task_of(const Conv3x3Params& p, int64_t row) {
    int64_t task = 0;
    for (int64_t end = p.counts[0]; row >= end; end += p.counts[task]) ++task;
    return task;
}

void convolve_block(const Conv3x3Params& p, const Group& g, const Tiling& tiling, Range block, int threads) {
    const int64_t pixels = p.height * p.width, tiles = block.size();
    Spectrum patches = p.k > kDepth / 2 ? Spectrum::of_tiles(tiles, p.k) : Spectrum::of_rows(tiles, p.k);
    patches.data = Workspace::floats(Slot::maps, patches.floats());
    if (tiles * p.k * p.n < (int64_t{1} << 14)) threads = 1;  // less than a thread's start is worth
    parallel_for(tiles, threads, [&](int64_t slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        const auto transform = tiling.inner(place) ? transform_tile_in<true> : transform_tile_in<false>;
        transform(p.x + place.row * pixels * p.k, tiling, place, p.k, patches, slot);
    });
    const int64_t columns = chunk_columns(p, p.packed[0] == nullptr ? g.last - g.first : 0, tiles);
    Spectrum products = Spectrum::of_rows(tiles, columns);
    products.data = Workspace::floats(Slot::products, products.floats());
    for (int64_t first = 0; first < p.n; first += columns) {
        const Range part{first, first + columns < p.n ? first + columns : p.n};
        const Range panels{first / kLanes16, (part.end + kLanes16 - 1) / kLanes16};
        const Weights weights = chunk_weights(p, g, panels, threads);
        multiply(p, g, tiling, block, part.size(), weights, patches, products, threads);
        parallel_for(tiles, threads, [&](int64_t slot) {
            const Tiling::Place place = tiling.at(block.begin + slot);
            const Biases biases = g.task_biases(task_of(p, place.row));
            transform_tile_out(p.out + place.row * pixels * p.n, tiling, place, p.n, part, biases, p.relu, products, slot);
        });
    }
}

void lay_biases_out(const Conv3x3Params& p, Group& g) {
    g.bias_stride = (p.n + kLanes16 - 1) / kLanes16 * kLanes16;
    g.bias_floats = g.bias_stride * (p.tap_biases[0] != nullptr ? 16 : 1);
    float* tables = Workspace::floats(Slot::other, (g.last - g.first) * g.bias_floats);
    g.biases = tables;
    for (int64_t task = g.first; task < g.last; ++task, tables += g.bias_floats)
        if (p.counts[task] > 0) fill_biases(p.biases[task], p.tap_biases[task], p.n, g.bias_stride, tables);
}

void convolve(const Conv3x3Params& p, DType, int threads) {
    const Tiling tiling(p.height, p.width);
    int64_t rows = 0;
    for (int64_t task = 0; task < p.tasks; ++task) rows += p.counts[task];
    expect_writes(p.out, rows * p.height * p.width * p.n * static_cast<int64_t>(sizeof(float)), threads);
    const int64_t fitting = kGroupFloats / weight_floats(p.k, p.n);
    const int64_t together = p.packed[0] != nullptr ? p.tasks : fitting > 1 ? fitting : 1;
    const int64_t most = most_tiles(p.k, p.n);
    int64_t tile = 0;
    Group g{};
    for (g.first = 0; g.first < p.tasks; g.first = g.last) {
        g.last = g.first + together < p.tasks ? g.first + together : p.tasks;
        g.tiles = {tile, tile};
        for (int64_t task = g.first; task < g.last; ++task) g.tiles.end += p.counts[task] * tiling.per_row();
        tile = g.tiles.end;
        if (g.tiles.size() == 0) continue;
        lay_biases_out(p, g);
        const int64_t blocks = (g.tiles.size() + most - 1) / most;
        for (int64_t b = 0; b < blocks; ++b) {
            const Range part = share(g.tiles.size(), blocks, b);
            convolve_block(p, g, tiling, {g.tiles.begin + part.begin, g.tiles.begin + part.end}, threads);
        }
    }
}

void pack(const PackParams& p, DType, int threads) {
    for (int64_t task = 0; task < p.tasks; ++task)
        expect_writes(p.packed[task], weight_floats(p.k, p.n) * static_cast<int64_t>(sizeof(float)), threads);
    pack_weights(p, {0, (p.n + kLanes16 - 1) / kLanes16}, weight_plane(p.k, p.n), threads);
}

struct ReleaseParams {
    int64_t keep;  // bytes a buffer may have
};
void release(const ReleaseParams& p, DType, int) { Workspace::shrink(p.keep); }

constexpr Field kConv3x3Fields[] = {
    DMTL_FIELD(Conv3x3Params, out),      DMTL_FIELD(Conv3x3Params, x),          DMTL_FIELD(Conv3x3Params, packed),
    DMTL_FIELD(Conv3x3Params, weights),  DMTL_FIELD(Conv3x3Params, biases),     DMTL_FIELD(Conv3x3Params, tap_biases),
    DMTL_FIELD(Conv3x3Params, counts),   DMTL_FIELD(Conv3x3Params, tasks),      DMTL_FIELD(Conv3x3Params, height),
    DMTL_FIELD(Conv3x3Params, width),    DMTL_FIELD(Conv3x3Params, k),          DMTL_FIELD(Conv3x3Params, n),
    DMTL_FIELD(Conv3x3Params, stride_k), DMTL_FIELD(Conv3x3Params, stride_n),   DMTL_FIELD(Conv3x3Params, stride_tap),
    DMTL_FIELD(Conv3x3Params, flipped),  DMTL_FIELD(Conv3x3Params, relu),
};
constexpr Field kPackFields[] = {
    DMTL_FIELD(PackParams, packed),   DMTL_FIELD(PackParams, weights),    DMTL_FIELD(PackParams, tasks),
    DMTL_FIELD(PackParams, k),        DMTL_FIELD(PackParams, n),          DMTL_FIELD(PackParams, stride_k),
    DMTL_FIELD(PackParams, stride_n), DMTL_FIELD(PackParams, stride_tap), DMTL_FIELD(PackParams, flipped),
};
constexpr Field kReleaseFields[] = {DMTL_FIELD(ReleaseParams, keep)};

}  // namespace

DMTL_KERNELS(conv3x3, cpu_kernel<Conv3x3Params, &convolve>("conv3x3", kConv3x3Fields),
             cpu_kernel<PackParams, &pack>("conv3x3_pack", kPackFields),
             cpu_kernel<ReleaseParams, &release>("conv3x3_release", kReleaseFields))

}  // namespace dmtl::DMTL_ISA
