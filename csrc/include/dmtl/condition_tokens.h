// Parameters of condition_tokens, and the part that CPU and CUDA kernels share: where the values of a patch are.
#pragma once

#include "dmtl/kernel_table.h"
#include "dmtl/scalar.h"

namespace dmtl {

constexpr int kMostMaps = 16;

// K maps [samples, channels, h, w] of any strides (in elements) are divided into patches: the token at (y, x) of a sample's
// grid_h x grid_w grid is computed from side x side pixels, starting at (reduction y - padding, reduction x - padding); pixels
// outside are zero. Rows are the tokens of all samples. All other tensors are contiguous, d_maps is channels-last. Pointers
// that a kernel does not need are null.
struct ConditionTokensParams {
    const void* maps[kMostMaps];
    int64_t first[kMostMaps];  // index of the map's first channel among the channels of all maps
    int64_t stride_b[kMostMaps], stride_c[kMostMaps], stride_y[kMostMaps], stride_x[kMostMaps];
    int64_t map_count, channels;  // channels of all maps together
    int64_t samples, grid_h, grid_w;
    int64_t reduction, side, padding;  // side: rows and columns of the kernel
    const void *weight, *bias;                           // [width, channels, side, side], [width] or null
    const void *norm_weight, *norm_bias, *query_weight;  // [width], [query_width, width]; null without query
    int64_t width, query_width;
    float eps;
    void *tokens, *query;   // [rows, width], [rows, query_width]
    void* patches;          // [rows, channels, side, side]
    float* stats;           // [rows, 2]: mean and 1 / standard deviation of the tokens
    const void *d_tokens, *d_query;
    void* d_maps[kMostMaps];
    void *d_weight, *d_bias, *d_norm_weight, *d_norm_bias, *d_query_weight;
};

namespace {

constexpr Field kConditionTokensFields[] = {
    DMTL_FIELDS(ConditionTokensParams, maps, first, stride_b, stride_c, stride_y, stride_x, map_count, channels, samples),
    DMTL_FIELDS(ConditionTokensParams, grid_h, grid_w, reduction, side, padding, weight, bias, norm_weight, norm_bias),
    DMTL_FIELDS(ConditionTokensParams, query_weight, width, query_width, eps, tokens, query, patches, stats, d_tokens, d_query),
    DMTL_FIELDS(ConditionTokensParams, d_maps, d_weight, d_bias, d_norm_weight, d_norm_bias, d_query_weight),
};

// The token of a row: its sample and the first pixel of its patch, which may be outside the image because of the padding.
struct Corner {
    int64_t sample, y, x;
};

DMTL_INLINE int64_t row_count(const ConditionTokensParams& p) { return p.samples * p.grid_h * p.grid_w; }

DMTL_INLINE int64_t patch_size(const ConditionTokensParams& p) { return p.channels * p.side * p.side; }

DMTL_INLINE Corner corner_of(const ConditionTokensParams& p, int64_t row) {
    const int64_t cell = row % (p.grid_h * p.grid_w);
    return {row / (p.grid_h * p.grid_w), cell / p.grid_w * p.reduction - p.padding, cell % p.grid_w * p.reduction - p.padding};
}

// Value k = (channel, ky, kx) of every patch: its map, the offset of its channel in the map, and its pixel in the patch.
struct Tap {
    int map;
    int64_t offset, y, x;
};

DMTL_INLINE int map_of(const ConditionTokensParams& p, int64_t channel) {
    int map = 0;
    while (map + 1 < p.map_count && channel >= p.first[map + 1]) ++map;
    return map;
}

DMTL_INLINE Tap tap_of(const ConditionTokensParams& p, int64_t k) {
    const uint32_t value = static_cast<uint32_t>(k), side = static_cast<uint32_t>(p.side);  // 32 bits divide faster
    const int64_t channel = value / (side * side);
    const int map = map_of(p, channel);
    return {map, (channel - p.first[map]) * p.stride_c[map], value % (side * side) / side, value % side};
}

template <class T>
DMTL_INLINE float patch_value(const ConditionTokensParams& p, Corner corner, Tap tap) {
    const int64_t y = corner.y + tap.y, x = corner.x + tap.x;
    if (y < 0 || x < 0 || y >= p.grid_h * p.reduction || x >= p.grid_w * p.reduction) return 0.0f;
    return load(static_cast<const T*>(p.maps[tap.map]) + corner.sample * p.stride_b[tap.map] + tap.offset +
                y * p.stride_y[tap.map] + x * p.stride_x[tap.map]);
}

// The gradient of pixel (y, x) of a channel: the sum of the gradients of all patches that contain it.
template <class T>
DMTL_INLINE float pixel_gradient(const ConditionTokensParams& p, const T* d_patches, int64_t sample, int64_t channel, int64_t y,
                                 int64_t x) {
    float sum = 0.0f;
    for (int64_t ky = (y + p.padding) % p.reduction; ky < p.side && ky <= y + p.padding; ky += p.reduction) {
        const int64_t cell_y = (y + p.padding - ky) / p.reduction;
        for (int64_t kx = (x + p.padding) % p.reduction; kx < p.side && kx <= x + p.padding; kx += p.reduction) {
            const int64_t cell_x = (x + p.padding - kx) / p.reduction;
            if (cell_y >= p.grid_h || cell_x >= p.grid_w) continue;
            const int64_t row = (sample * p.grid_h + cell_y) * p.grid_w + cell_x;
            sum += load(d_patches + ((row * p.channels + channel) * p.side + ky) * p.side + kx);
        }
    }
    return sum;
}

}  // namespace
}  // namespace dmtl
