// The parts of the convolution kernels (csrc/cpu/conv3x3.cpp): parameters, packing of weights, and the processing of one tile.
#pragma once

#include "dmtl/gemm.h"
#include "dmtl/winograd.h"

namespace dmtl {
namespace {

constexpr int kMostTasks = 64;
constexpr int64_t kLargeBlock = int64_t{6} << 20;  // most floats of a block of transformed patches or gradients
constexpr int64_t kKeptBytes = int64_t{48} << 20;  // maximum bytes of a buffer that is kept between calls

// Weights of each task: n columns of the product (channels out), k rows (channels in), 9 taps, at weight[column * stride_n +
// row * stride_k + tap * stride_tap]. The data gradient exchanges rows and columns and has the taps `flipped`.
struct PackParams {
    float* packed[kMostTasks];
    const float* weights[kMostTasks];
    int64_t tasks, k, n, stride_k, stride_n, stride_tap;
    bool flipped;
};

// Images [rows, height, width, k] -> [rows, height, width, n], with rows sorted by task. `packed` is the result of
// `pack_weights` for every task, or null for every task; the kernel then packs `weights` itself.
struct Conv3x3Params {
    float* out;
    const float* x;
    const float* packed[kMostTasks];
    const float* weights[kMostTasks];
    const float* biases[kMostTasks];      // [n] or null
    const float* tap_biases[kMostTasks];  // [n, 3, 3] or null
    int64_t counts[kMostTasks];           // number of rows of each task
    int64_t tasks, height, width, k, n, stride_k, stride_n, stride_tap;
    bool flipped, relu;
};

// Frequency f of the weights is at packed + f * weight_plane(k, n), as panels of gemm.h. Without the 16 floats between the
// planes, they would be a power of two apart, and 36 streams would share one cache set.
inline int64_t weight_plane(int64_t k, int64_t n) { return packed_floats(k, n) + kLanes16; }
inline int64_t weight_floats(int64_t k, int64_t n) { return kFrequencies * weight_plane(k, n); }

// Transformed weights of more floats are written past the caches, because they would be evicted before they are read.
constexpr int64_t kCacheFloats = int64_t{2} << 20;

// Packs sixteen columns (one panel), rows [first, last).
inline void pack_piece(const PackParams& p, const float* weight, float* packed, int64_t panel, int64_t first, int64_t last) {
    constexpr int taps = kTaps * kTaps;
    const int64_t column = panel * kLanes16, plane = weight_plane(p.k, p.n);
    const bool streamed = weight_floats(p.k, p.n) > kCacheFloats && reinterpret_cast<uintptr_t>(packed) % 64 == 0;
    const int64_t width = p.n - column < kLanes16 ? p.n - column : kLanes16;
    alignas(64) float g[taps][kLanes16] = {};
    for (int64_t row = first; row < last; ++row) {
        const float* from = weight + column * p.stride_n + row * p.stride_k;
        for (int tap = 0; tap < taps; ++tap) {
            float* lanes = g[p.flipped ? taps - 1 - tap : tap];
            for (int64_t l = 0; l < width; ++l) lanes[l] = from[l * p.stride_n + tap * p.stride_tap];
        }
        F32x16 lanes[taps], u[kFrequencies];
        for (int tap = 0; tap < taps; ++tap) lanes[tap] = F32x16::load(g[tap]);
        transform_weights(lanes, u);
        float* out = packed + column * p.k + row * kLanes16;
        for (int f = 0; f < kFrequencies; ++f) streamed ? u[f].stream(out + f * plane) : u[f].store(out + f * plane);
    }
    if (streamed) finish_streams();
}

inline void pack_weights(const PackParams& p, int threads) {
    const int64_t panels = lane_groups(p.n), piece = 512;
    const int64_t pieces = (p.k + piece - 1) / piece;
    parallel_for(p.tasks * panels * pieces, p.k * p.n * p.tasks < 2048 ? 1 : threads, [&](int64_t item) {
        const int64_t task = item / (panels * pieces), first = item % pieces * piece;
        const int64_t last = first + piece < p.k ? first + piece : p.k;
        pack_piece(p, p.weights[task], p.packed[task], item / pieces % panels, first, last);
    });
}

// The 4x4 tiles of all images of a call, in the order of the rows, and the map that contains them.
struct Tiling {
    int64_t height, width, down, across;
    Tiling(int64_t h, int64_t w) : height(h), width(w), down((h + kOut - 1) / kOut), across((w + kOut - 1) / kOut) {}
    int64_t per_row() const { return down * across; }
    struct Place {
        int64_t row, y, x;  // image, and the tile's first pixel
    };
    Place at(int64_t tile) const {
        const int64_t inside = tile % per_row();
        return {tile / per_row(), inside / across * kOut, inside % across * kOut};
    }
    bool inner(const Place& p) const { return p.y > 0 && p.x > 0 && p.y + kOut < height && p.x + kOut < width; }
};

// The number of tiles in a block whose transformed patches have at most this many floats.
inline int64_t most_tiles(int64_t k, int64_t n, int64_t floats) {
    constexpr int64_t least = 64;
    const int64_t fitting = floats / (kFrequencies * ((k > n ? k : n) + 32));
    return fitting > least ? fitting : least;
}

// Transforms read or write 36 streams at a time, too many for the processor to foresee. So they prefetch their lines this far
// ahead, and the pixels of the next tile.
constexpr int64_t kFloatsAhead = 4 * kLanes16;

// Transformed patches, later overwritten by the products. Frequency f of tile t is at data + f * plane + t * stride.
struct Spectrum {
    float* data;
    int64_t plane, stride;
};

template <bool inner>
DMTL_INLINE void load_patch(const float* image, const Tiling& t, const Tiling::Place& p, int64_t channels, int64_t c,
                            F32x16 (&patch)[kFrequencies]) {
    const int64_t count = channels - c < kLanes16 ? channels - c : kLanes16;
    for (int i = 0; i < kPatch; ++i)
        for (int j = 0; j < kPatch; ++j) {
            const int64_t y = p.y + i - 1, x = p.x + j - 1;
            const float* from = image + (y * t.width + x) * channels + c;
            if (j >= kPatch - kOut) __builtin_prefetch(from + kOut * channels);
            if (!inner && (y < 0 || x < 0 || y >= t.height || x >= t.width))
                patch[i * kPatch + j] = F32x16::zero();
            else
                patch[i * kPatch + j] = count == kLanes16 ? F32x16::load(from) : F32x16::load(from, count);
        }
}

// Transforms channels [part.begin, part.end) of one tile; begin is a multiple of 16, and comes first in the spectrum.
template <bool inner>
void transform_channels_in(const float* image, const Tiling& t, const Tiling::Place& p, int64_t channels, Range part,
                           const Spectrum& s, int64_t slot) {
    for (int64_t c = part.begin; c < part.end; c += kLanes16) {
        F32x16 patch[kFrequencies], v[kFrequencies];
        load_patch<inner>(image, t, p, channels, c, patch);
        transform_patch(patch, v);
        float* out = s.data + slot * s.stride + c - part.begin;
        for (int f = 0; f < kFrequencies; ++f) {
            __builtin_prefetch(out + f * s.plane + kFloatsAhead, 1);
            v[f].store(out + f * s.plane);
        }
    }
}

inline void transform_tile_in(const float* image, const Tiling& t, const Tiling::Place& p, int64_t channels, Range part,
                              const Spectrum& s, int64_t slot) {
    t.inner(p) ? transform_channels_in<true>(image, t, p, channels, part, s, slot)
               : transform_channels_in<false>(image, t, p, channels, part, s, slot);
}

// What is added to a pixel: the bias and the tap biases of the taps that are inside the image. There are 16 cases: which of the
// neighbours above, below, on the left and on the right exist. In the last case all of them do.
struct Biases {
    const float* table;  // [16, n rounded up to 16], or with `one` only the last case
    int64_t stride;
    bool one;
    const float* at(const Tiling& t, int64_t y, int64_t x) const {
        if (one) return table;
        const int64_t which = (y > 0) + 2 * (y + 1 < t.height) + 4 * (x > 0) + 8 * (x + 1 < t.width);
        return table + which * stride;
    }
};

// Whether a tap is outside the image in the case `which`.
inline bool outside(int tap, int which) {
    return (tap / 3 == 0 && !(which & 1)) || (tap / 3 == 2 && !(which & 2)) || (tap % 3 == 0 && !(which & 4)) ||
           (tap % 3 == 2 && !(which & 8));
}

inline void fill_biases(const float* bias, const float* taps, int64_t n, int64_t stride, float* table) {
    for (int which = taps == nullptr ? 15 : 0; which < 16; ++which) {
        float* out = taps == nullptr ? table : table + which * stride;
        for (int64_t k = 0; k < stride; ++k) {
            float sum = bias == nullptr || k >= n ? 0.0f : bias[k];
            for (int tap = 0; tap < kTaps * kTaps && taps != nullptr && k < n; ++tap)
                if (!outside(tap, which)) sum += taps[k * kTaps * kTaps + tap];
            out[k] = sum;
        }
    }
}

inline void transform_tile_out(float* image, const Tiling& t, const Tiling::Place& p, int64_t channels, const Biases& biases,
                               bool relu, const Spectrum& s, int64_t slot) {
    const int64_t rows = t.height - p.y < kOut ? t.height - p.y : kOut, columns = t.width - p.x < kOut ? t.width - p.x : kOut;
    for (int64_t c = 0; c < channels; c += kLanes16) {
        const int64_t count = channels - c < kLanes16 ? channels - c : kLanes16;
        F32x16 m[kFrequencies], y[kOut * kOut];
        const float* from = s.data + slot * s.stride + c;
        for (int f = 0; f < kFrequencies; ++f) {
            __builtin_prefetch(from + f * s.plane + kFloatsAhead);
            m[f] = F32x16::load(from + f * s.plane, count);
        }
        transform_products(m, y);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) {
                F32x16 value = y[i * kOut + j] + F32x16::load(biases.at(t, p.y + i, p.x + j) + c);
                if (relu) value = max(F32x16::zero(), value);
                float* to = image + ((p.y + i) * t.width + p.x + j) * channels + c;
                __builtin_prefetch(to + kOut * channels, 1);
                value.store(to, count);
            }
    }
}

}  // namespace
}  // namespace dmtl
