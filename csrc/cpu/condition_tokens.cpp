// condition_tokens: patches of the maps times the folded weight, then LayerNorm and the query projection; and its backward.
// Patches and normalised tokens are computed while a product reads them, and not stored. Compiled once per instruction set.
#include "dmtl/condition_tokens.h"
#include "dmtl/tokens.h"

namespace dmtl::DMTL_ISA {
namespace {

using Params = ConditionTokensParams;

// The left side A of the product: a row is a token, k is (channel, ky, kx).
template <class T>
struct Patches {
    const Params& p;

    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        const bool whole = p.side == 4 && p.padding == 0 && k % 16 == 0 && count % 16 == 0;
        for (int64_t r = 0; r < rows; ++r, out += stride) {
            const Corner corner = corner_of(p, row + r);
            if (whole)
                for (int64_t c = 0; c < count; c += 16) inner(corner, tap_of(p, k + c), out + c);
            else
                for (int64_t c = 0; c < count; ++c) out[c] = patch_value<T>(p, corner, tap_of(p, k + c));
        }
    }

    // Copies one channel of a patch that is completely inside the image, starting at its first tap.
    void inner(Corner corner, Tap first, float* out) const {
        const int64_t step_y = p.stride_y[first.map], step_x = p.stride_x[first.map];
        const T* from = static_cast<const T*>(p.maps[first.map]) + corner.sample * p.stride_b[first.map] + first.offset +
                        corner.y * step_y + corner.x * step_x;
        for (int64_t y = 0; y < 4; ++y)
            for (int64_t x = 0; x < 4; ++x) out[4 * y + x] = load(from + y * step_y + x * step_x);
    }
};

template <class T>
const T* as(const void* pointer) { return static_cast<const T*>(pointer); }

template <class T>
Normed<T> normalised(const Params& p, int threads) {
    Moments* moments = reinterpret_cast<Moments*>(p.stats);
    row_moments(as<T>(p.tokens), row_count(p), p.width, p.eps, moments, threads);
    return {as<T>(p.tokens), p.width, moments, as<T>(p.norm_weight), as<T>(p.norm_bias)};
}

template <class T>
void forward(const Params& p, int threads) {
    const int64_t rows = row_count(p), depth = patch_size(p);
    if (rows == 0) return;
    float* packed = Workspace::floats(Slot::weights, packed_floats(depth, p.width));
    pack_columns(as<T>(p.weight), depth, depth, p.width, packed, threads);
    T* tokens = static_cast<T*>(p.tokens);
    if (p.bias == nullptr)
        gemm(rows, {packed, depth, p.width}, threads, Patches<T>{p}, Store<T>{tokens, p.width});
    else
        gemm(rows, {packed, depth, p.width}, threads, Patches<T>{p}, StoreBiased<T>{tokens, p.width, as<T>(p.bias)});
    if (p.query == nullptr) return;
    packed = Workspace::floats(Slot::weights, packed_floats(p.width, p.query_width));
    pack_columns(as<T>(p.query_weight), p.width, p.width, p.query_width, packed, threads);
    gemm(rows, {packed, p.width, p.query_width}, threads, normalised<T>(p, threads),
         Store<T>{static_cast<T*>(p.query), p.query_width});
}

template <class T>
void widen(const T* from, int64_t count, float* out, int threads) {
    constexpr int64_t piece = 8192;
    parallel_for((count + piece - 1) / piece, threads, [=](int64_t item) {
        const int64_t end = (item + 1) * piece < count ? (item + 1) * piece : count;
#pragma omp simd
        for (int64_t i = item * piece; i < end; ++i) out[i] = load(from + i);
    });
}

// The number of floats of scratch memory that query_backward and the gradient of the bias need.
inline int64_t scratch_floats(const Params& p) {
    const int64_t rows = row_count(p);
    return p.d_query == nullptr ? (1 + partial_sums(rows)) * p.width : (2 * rows + 3 + 2 * partial_sums(rows)) * p.width;
}

// The backward pass of the query and its LayerNorm: computes the gradients of the parameters, and adds to d_tokens [rows,
// width].
template <class T>
void query_backward(const Params& p, float* d_tokens, float* work, int threads) {
    const int64_t rows = row_count(p), width = p.width;
    float *d_n = work, *tokens = d_n + rows * width, *scale = tokens + rows * width;
    float *sums = scale + width, *partial = sums + 2 * width;
    const Normed<T> normed = normalised<T>(p, threads);
    const T* d_query = as<T>(p.d_query);
    float* packed = Workspace::floats(Slot::weights, packed_floats(p.query_width, width));
    pack_rows(as<T>(p.query_weight), width, p.query_width, width, packed, threads);
    gemm(rows, {packed, p.query_width, width}, threads, RowsOf<T>{d_query, p.query_width}, Store<float>{d_n, width});
    widen(as<T>(p.tokens), rows * width, tokens, threads);
    widen(as<T>(p.norm_weight), width, scale, 1);
    norm_backward(d_n, tokens, normed.moments, scale, d_tokens, rows, width, d_tokens, false, sums, sums + width, partial,
                  threads);
    if (p.d_norm_weight != nullptr) round_to(static_cast<T*>(p.d_norm_weight), sums, width);
    if (p.d_norm_bias != nullptr) round_to(static_cast<T*>(p.d_norm_bias), sums + width, width);
    if (p.d_query_weight == nullptr) return;
    packed = Workspace::floats(Slot::weights, packed_floats(rows, width));
    pack_panels(rows, width, packed, threads, [=](int64_t row, int64_t c) { return normed.at(row, c); });
    gemm(p.query_width, {packed, rows, width}, threads, ColumnsOf<T>{d_query, p.query_width},
         Store<T>{static_cast<T*>(p.d_query_weight), width});
}

template <class T>
void maps_backward(const Params& p, const float* d_patches, int threads) {
    const int64_t height = p.grid_h * p.reduction, width = p.grid_w * p.reduction;
    parallel_for(p.samples * height, threads, [&](int64_t item) {
        const int64_t sample = item / height, y = item % height;
        for (int64_t map = 0; map < p.map_count; ++map) {
            if (p.d_maps[map] == nullptr) continue;
            const int64_t end = map + 1 < p.map_count ? p.first[map + 1] : p.channels;
            T* out = static_cast<T*>(p.d_maps[map]) + item * width * (end - p.first[map]);
            for (int64_t x = 0; x < width; ++x)
                for (int64_t c = p.first[map]; c < end; ++c) store(out++, pixel_gradient(p, d_patches, sample, c, y, x));
        }
    });
}

template <class T>
void backward(const Params& p, int threads) {
    const int64_t rows = row_count(p), depth = patch_size(p);
    float* d_tokens = Workspace::floats(Slot::other, rows * p.width + scratch_floats(p));
    float* scratch = d_tokens + rows * p.width;
    widen(as<T>(p.d_tokens), rows * p.width, d_tokens, threads);
    if (p.d_query != nullptr) query_backward<T>(p, d_tokens, scratch, threads);
    if (p.d_bias != nullptr) {
        sum_rows(d_tokens, rows, p.width, false, scratch, scratch + p.width, threads);
        round_to(static_cast<T*>(p.d_bias), scratch, p.width);
    }
    if (p.d_weight != nullptr) {
        float* packed = Workspace::floats(Slot::weights, packed_floats(rows, depth));
        pack_panels(rows, depth, packed, threads,
                      [&](int64_t row, int64_t k) { return patch_value<T>(p, corner_of(p, row), tap_of(p, k)); });
        gemm(p.width, {packed, rows, depth}, threads, ColumnsOf<float>{d_tokens, p.width},
             Store<T>{static_cast<T*>(p.d_weight), depth});
    }
    bool maps = false;
    for (const void* d_map : p.d_maps) maps = maps || d_map != nullptr;
    if (!maps) return;
    float* packed = Workspace::floats(Slot::weights, packed_floats(p.width, depth));
    float* d_patches = Workspace::floats(Slot::maps, rows * depth);
    pack_rows(as<T>(p.weight), depth, p.width, depth, packed, threads);
    gemm(rows, {packed, p.width, depth}, threads, RowsOf<float>{d_tokens, p.width}, Store<float>{d_patches, depth});
    maps_backward<T>(p, d_patches, threads);
}

}  // namespace

DMTL_STORAGE_KERNEL(condition_tokens, Params, forward)
DMTL_STORAGE_KERNEL(condition_tokens_backward, Params, backward)

DMTL_KERNELS(condition_tokens, cpu_kernel<Params, &condition_tokens>("condition_tokens", kConditionTokensFields),
             cpu_kernel<Params, &condition_tokens_backward>("condition_tokens_backward", kConditionTokensFields))

}  // namespace dmtl::DMTL_ISA
