// 3x3 convolution of channels-last maps, grouped by task, by Winograd's F(4x4, 3x3). The data gradient is the same computation
// with flipped weights whose input and output channels are exchanged. Compiled once per instruction set (DMTL_ISA).
// The tiles of all tasks form one sequence, which is processed in blocks: transform the patches; at each of the 36 frequencies,
// multiply them by the transformed weights of their task, overwriting the patches with the products; transform back.
// Usually each thread has its own blocks, so that nothing moves between the caches of cores: twice as fast on two cores as
// threads that share a block. These are still better for few tiles and weights that do not fit into the cache, because each
// thread then reads some of the weights, not all.
#include "dmtl/conv3x3_cpu.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kWeightFloats = int64_t{3} << 20;  // limit of weights packed at a time, but at least one task's
constexpr int64_t kOwnBlock = int64_t{2} << 20;      // most floats of a block that one thread processes
constexpr int64_t kLeastOwn = int64_t{1} << 19;      // and the least, if kLargeBlock is divided among many threads
constexpr int64_t kOwnTiles = 64;                    // with fewer tiles per thread, reading large weights takes longer than products

// Consecutive tasks whose weights are packed.
struct Group {
    int64_t first, last;   // tasks
    Range tiles;           // their tiles, among all tiles of the call
    const float* packed[kMostTasks];
    const float* biases;   // tables of the tasks from `first` on, bias_floats each
    int64_t bias_stride, bias_floats;

    Biases task_biases(int64_t task) const {
        return {biases + (task - first) * bias_floats, bias_stride, bias_floats == bias_stride};
    }
};

// The products of the tiles of a block. A work item is one frequency of some tiles of one task.
void multiply(const Conv3x3Params& p, const Group& g, const Tiling& tiling, Range block, const Spectrum& s, int threads) {
    int64_t end = g.tiles.begin;
    for (int64_t task = g.first; task < g.last; ++task) {
        const int64_t begin = end > block.begin ? end : block.begin;
        end += p.counts[task] * tiling.per_row();
        const Range tiles{begin, end < block.end ? end : block.end};
        if (tiles.size() <= 0) continue;
        const int64_t pieces = row_blocks(tiles.size(), p.k, 1);
        parallel_for(kFrequencies * pieces, threads, [&](int64_t item) {
            const int64_t f = item / pieces;
            float* data = s.data + f * s.plane + (tiles.begin - block.begin) * s.stride;
            const Panels weights{g.packed[task] + f * weight_plane(p.k, p.n), p.k, p.n};
            const Range rows = share(tiles.size(), pieces, item % pieces);
            gemm_block(rows, weights, {0, weights.count()}, RowsOf<float>{data, s.stride}, Store<float>{data, s.stride});
        });
    }
}

int64_t task_of(const Conv3x3Params& p, int64_t row) {
    int64_t task = 0;
    for (int64_t end = p.counts[0]; row >= end; end += p.counts[task]) ++task;
    return task;
}

void convolve_block(const Conv3x3Params& p, const Group& g, const Tiling& tiling, Range block, int threads) {
    const int64_t widest = p.k > p.n ? p.k : p.n, pixels = p.height * p.width;
    Spectrum s;
    s.stride = padded_to_lanes(widest) + kLanes16;  // rows and planes a power of two apart would share cache sets
    s.plane = (block.size() * s.stride + 1023) / 1024 * 1024 + 16;
    s.data = Workspace::floats(Slot::maps, kFrequencies * s.plane);
    parallel_for(block.size(), threads, [&](int64_t slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        transform_tile_in(p.x + place.row * pixels * p.k, tiling, place, p.k, {0, p.k}, s, slot);
    });
    multiply(p, g, tiling, block, s, threads);
    parallel_for(block.size(), threads, [&](int64_t slot) {
        const Tiling::Place place = tiling.at(block.begin + slot);
        const Biases biases = g.task_biases(task_of(p, place.row));
        transform_tile_out(p.out + place.row * pixels * p.n, tiling, place, p.n, biases, p.relu, s, slot);
    });
}

// Packs weights that are not packed yet, and fills the tables of biases.
void prepare(const Conv3x3Params& p, Group& g, int threads) {
    const bool taps = p.tap_biases[0] != nullptr;
    const int64_t floats = weight_floats(p.k, p.n);
    g.bias_stride = padded_to_lanes(p.n);
    g.bias_floats = g.bias_stride * (taps ? 16 : 1);
    float* tables = Workspace::floats(Slot::other, (g.last - g.first) * g.bias_floats);
    float* space = p.packed[0] == nullptr ? Workspace::floats(Slot::weights, (g.last - g.first) * floats) : nullptr;
    g.biases = tables;
    PackParams pack{{}, {}, 0, p.k, p.n, p.stride_k, p.stride_n, p.stride_tap, p.flipped};
    for (int64_t task = g.first; task < g.last; ++task, tables += g.bias_floats) {
        g.packed[task] = p.packed[task];
        if (p.counts[task] == 0) continue;
        fill_biases(p.biases[task], p.tap_biases[task], p.n, g.bias_stride, tables);
        if (space == nullptr) continue;
        pack.packed[pack.tasks] = space + (task - g.first) * floats;
        g.packed[task] = pack.packed[pack.tasks];
        pack.weights[pack.tasks++] = p.weights[task];
    }
    pack_weights(pack, threads);
}

void convolve_group(const Conv3x3Params& p, const Group& g, const Tiling& tiling, Range all, int threads) {
    const int used = all.size() * p.k * p.n < kSerialBelow ? 1 : threads;
    const bool own = weight_floats(p.k, p.n) <= kWeightFloats || all.size() >= kOwnTiles * used;
    const int64_t fair = kLargeBlock / used, own_block = fair > kOwnBlock ? kOwnBlock : fair < kLeastOwn ? kLeastOwn : fair;
    const int at_once = own ? used : 1;  // blocks
    const int64_t most = at_once * most_tiles(p.k, p.n, own ? own_block : kLargeBlock);
    const int64_t blocks = (all.size() + most - 1) / most * at_once;
    parallel_for(blocks, at_once, [&](int64_t b) {
        const Range block = share(all.size(), blocks, b);
        convolve_block(p, g, tiling, {all.begin + block.begin, all.begin + block.end}, own ? 1 : used);
    });
}

// Convolves tiles [all.begin, all.end).
void convolve_tiles(const Conv3x3Params& p, const Tiling& tiling, Range all, int threads) {
    const int64_t fitting = kWeightFloats / weight_floats(p.k, p.n);
    const int64_t together = p.packed[0] != nullptr ? p.tasks : fitting > 1 ? fitting : 1;
    int64_t tile = 0;
    Group g{};
    for (g.first = 0; g.first < p.tasks && tile < all.end; g.first = g.last) {
        const auto tiles_of = [&](int64_t task) { return p.counts[task] * tiling.per_row(); };
        g.last = g.first;
        g.tiles = {tile, tile};
        if (tile + tiles_of(g.first) <= all.begin) {  // other threads have this task
            tile += tiles_of(g.last++);
            continue;
        }
        while (g.last < p.tasks && g.last < g.first + together && g.tiles.end < all.end) g.tiles.end += tiles_of(g.last++);
        tile = g.tiles.end;
        prepare(p, g, threads);
        const Range mine{g.tiles.begin > all.begin ? g.tiles.begin : all.begin, tile < all.end ? tile : all.end};
        convolve_group(p, g, tiling, mine, threads);
    }
}

void convolve(const Conv3x3Params& p, DType, int threads) {
    const Tiling tiling(p.height, p.width);
    int64_t rows = 0;
    for (int64_t task = 0; task < p.tasks; ++task) rows += p.counts[task];
    expect_writes(p.out, rows * p.height * p.width * p.n * static_cast<int64_t>(sizeof(float)), threads);
    const int64_t tiles = rows * tiling.per_row();
    if (p.packed[0] == nullptr && weight_floats(p.k, p.n) <= kWeightFloats && tiles * p.k * p.n >= kSerialBelow) {
        // Each thread packs what it needs, which is faster than reading what another core has just written.
        const int64_t parts = tiles < threads ? tiles : threads;
        parallel_for(parts, threads, [&](int64_t i) { convolve_tiles(p, tiling, share(tiles, parts, i), 1); });
    } else {
        convolve_tiles(p, tiling, {0, tiles}, threads);
    }
    Workspace::shrink(kKeptBytes);
}

void pack(const PackParams& p, DType, int threads) {
    for (int64_t task = 0; task < p.tasks; ++task)
        expect_writes(p.packed[task], weight_floats(p.k, p.n) * static_cast<int64_t>(sizeof(float)), threads);
    pack_weights(p, threads);
}

constexpr Field kConv3x3Fields[] = {
    DMTL_FIELDS(Conv3x3Params, out, x, packed, weights, biases, tap_biases, counts, tasks, height, width, k, n),
    DMTL_FIELDS(Conv3x3Params, stride_k, stride_n, stride_tap, flipped, relu),
};
constexpr Field kPackFields[] = {
    DMTL_FIELDS(PackParams, packed, weights, tasks, k, n, stride_k, stride_n, stride_tap, flipped),
};

}  // namespace

DMTL_KERNELS(conv3x3, cpu_kernel<Conv3x3Params, &convolve>("conv3x3", kConv3x3Fields),
             cpu_kernel<PackParams, &pack>("conv3x3_pack", kPackFields))

}  // namespace dmtl::DMTL_ISA
