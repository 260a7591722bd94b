// CPU loops of the two noising operators and their backward. They are plain loops over lanes, which the compiler vectorises for
// the instruction set of the translation unit. Only the generator itself is written with intrinsics.
#pragma once

#include "dmtl/noising.h"
#include "dmtl/parallel.h"
#include "dmtl/philox_simd.h"
#include "dmtl/storage.h"

namespace dmtl {
namespace {

constexpr int64_t kLanes = 32;    // number of Philox blocks at a time
constexpr int64_t kChunk = 8192;  // elements per work item; a multiple of 4 * kLanes

struct Noise4 {
    float lane[4][kLanes];  // [element of the block][block]
};

// Draws normals for the kLanes blocks first, first + stride, ...
inline __attribute__((always_inline)) void draw(uint32_t first, uint32_t stride, NoiseKey key, Noise4& n) {
    uint32_t words[4][kLanes];
    philox_lanes(first, stride, key, words);
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
        box_muller(words[0][l], words[1][l], &n.lane[0][l], &n.lane[1][l]);
        box_muller(words[2][l], words[3][l], &n.lane[2][l], &n.lane[3][l]);
    }
}

template <class T>
struct Row {
    T* out;
    const T* x;
    const T* y;
    const T* noise;
    RowCoefs coef;
};

template <class T, bool has_y, bool has_noise>
void combine(const Row<T>& row, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i)
        store(row.out + i, noised<has_y, has_noise>(row.coef, load(row.x + i), has_y ? load(row.y + i) : 0.0f,
                                                    has_noise ? load(row.noise + i) : 0.0f));
}

// Computes up to `most` elements from `begin` on with drawn noise, fewer if only `left` are left. The full count is a
// compile-time constant, so the compiler can unroll the loop.
template <class T, bool has_y, int64_t most>
inline __attribute__((always_inline)) void combine_some(const Row<T>& row, int64_t begin, int64_t left, const float* eps) {
    T* out = row.out + begin;
    const T* x = row.x + begin;
    const T* y = has_y ? row.y + begin : nullptr;
    const int64_t size = left < most ? left : most;
    if (size == most) {
#pragma omp simd
        for (int64_t k = 0; k < most; ++k)
            store(out + k, noised<has_y, true>(row.coef, load(x + k), has_y ? load(y + k) : 0.0f, eps[k]));
    } else {
        for (int64_t k = 0; k < size; ++k)
            store(out + k, noised<has_y, true>(row.coef, load(x + k), has_y ? load(y + k) : 0.0f, eps[k]));
    }
}

// Computes elements [begin, end) of a row in logical order; begin is a multiple of four.
template <class T, bool has_y>
void combine_drawn(const Row<T>& row, NoiseKey key, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 4 * kLanes) {
        Noise4 n;
        draw(static_cast<uint32_t>(i / 4), 1, key, n);
        float eps[4 * kLanes];
        for (int64_t l = 0; l < kLanes; ++l)
            for (int64_t j = 0; j < 4; ++j) eps[4 * l + j] = n.lane[j][l];
        combine_some<T, has_y, 4 * kLanes>(row, i, end - i, eps);
    }
}

// Computes groups [begin, end) of four pixels of a channels-last row. The four elements of a Philox block are four neighbouring
// pixels of one channel, so lanes run along the channels and nothing has to be transposed.
template <class T, bool has_y>
void combine_drawn_channels_last(const Row<T>& row, NoiseKey key, int64_t channels, int64_t groups, int64_t begin, int64_t end) {
    constexpr int64_t run = 8 * kLanes;  // number of channels drawn ahead, so that each pixel is written in one long run
    float eps[4][run];
    for (int64_t group = begin; group < end; ++group) {
        for (int64_t start = 0; start < channels; start += run) {
            const int64_t stop = start + run < channels ? start + run : channels;
            for (int64_t c = start; c < stop; c += kLanes) {
                Noise4 n;
                draw(static_cast<uint32_t>(c * groups + group), static_cast<uint32_t>(groups), key, n);
                for (int64_t j = 0; j < 4; ++j) std::memcpy(&eps[j][c - start], n.lane[j], sizeof n.lane[j]);
            }
            for (int64_t j = 0; j < 4; ++j)
                for (int64_t c = start; c < stop; c += kLanes)
                    combine_some<T, has_y, kLanes>(row, (4 * group + j) * channels + c, stop - c, &eps[j][c - start]);
        }
    }
}

template <class T, bool has_y>
void noising(const NoisingParams& p, int threads) {
    if (p.batch == 0 || p.count == 0) return;
    const bool drawn = p.key != nullptr;
    const bool channels_last = drawn && p.channels > 0;
    // A work item is a piece of one row, counted in elements or, with channels last, in groups of four pixels.
    const int64_t groups = channels_last ? p.count / p.channels / 4 : 0;
    const int64_t units = channels_last ? groups : p.count;
    const int64_t per_item = channels_last ? 1 + kChunk / (4 * p.channels) : kChunk;
    const int64_t pieces = (units + per_item - 1) / per_item;
    if (p.batch * p.count < kSerialBelow) threads = 1;
    expect_writes(p.out, ((p.batch - 1) * p.stride_out + p.count) * static_cast<int64_t>(sizeof(T)));
    parallel_for(p.batch * pieces, threads, [&](int64_t item) {
        const int64_t b = item / pieces;
        const int64_t begin = item % pieces * per_item;
        const int64_t end = begin + per_item < units ? begin + per_item : units;
        const Row<T> row{static_cast<T*>(p.out) + b * p.stride_out, static_cast<const T*>(p.x) + b * p.stride_x,
                         has_y ? static_cast<const T*>(p.y) + b * p.stride_y : nullptr,
                         p.noise == nullptr ? nullptr : static_cast<const T*>(p.noise) + b * p.stride_noise,
                         row_coefs(p, b)};
        const bool silent = row.coef.noise == 0.0f || (!drawn && p.noise == nullptr);
        if (silent && channels_last)
            combine<T, has_y, false>(row, begin * 4 * p.channels, end * 4 * p.channels);
        else if (silent)
            combine<T, has_y, false>(row, begin, end);
        else if (channels_last)
            combine_drawn_channels_last<T, has_y>(row, noise_key(p.key + 3 * b, p.step), p.channels, groups, begin, end);
        else if (drawn)
            combine_drawn<T, has_y>(row, noise_key(p.key + 3 * b, p.step), begin, end);
        else
            combine<T, has_y, true>(row, begin, end);
    });
}

template <class T>
void scaling(const ScalingParams& p, int threads) {
    if (p.batch == 0 || p.count == 0) return;
    const int64_t pieces = (p.count + kChunk - 1) / kChunk;
    if (p.batch * p.count < kSerialBelow) threads = 1;
    for (void* out : p.out)
        if (out != nullptr) expect_writes(out, p.batch * p.count * static_cast<int64_t>(sizeof(T)));
    parallel_for(p.batch * pieces, threads, [&](int64_t item) {
        const int64_t b = item / pieces;
        const int64_t begin = item % pieces * kChunk;
        const int64_t end = begin + kChunk < p.count ? begin + kChunk : p.count;
        const T* grad = static_cast<const T*>(p.grad) + b * p.stride_grad;
        for (int i = 0; i < 3; ++i) {  // the chunk of grad stays in the first-level cache for all outputs
            if (p.out[i] == nullptr) continue;
            T* out = static_cast<T*>(p.out[i]) + b * p.stride_out;
            const float scale = p.table[i][p.t[b]];
#pragma omp simd
            for (int64_t k = begin; k < end; ++k) store(out + k, scale * load(grad + k));
        }
    });
}

}  // namespace
}  // namespace dmtl
