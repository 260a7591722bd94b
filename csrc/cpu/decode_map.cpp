// decode_map: the 1x1 head at low resolution; then every row of the map is interpolated and decoded without storing its logits.
// Pixels of one phase (see decode_map.h) are next to each other in the buffers, so that lanes run along the row for any factor.
#include "dmtl/decode_map.h"
#include "dmtl/tokens.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {
namespace {

using Params = DecodeMapParams;

// The left side A of the head's product: a row is a pixel.
template <class T>
struct Pixels {
    const Params& p;
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t r = 0; r < rows; ++r, out += stride) {
            const int64_t cell = (row + r) % (p.h * p.w);
            const T* from = static_cast<const T*>(p.x) + (row + r) / (p.h * p.w) * p.stride_n + cell / p.w * p.stride_y +
                            cell % p.w * p.stride_x + k * p.stride_c;
            if (p.stride_c == 1) {
#pragma omp simd
                for (int64_t c = 0; c < count; ++c) out[c] = load(from + c);
            } else {
                for (int64_t c = 0; c < count; ++c) out[c] = load(from + c * p.stride_c);
            }
        }
    }
};

// The head of one to kFewClasses classes on channels-last features, as sums along the channels. A matrix product would first
// copy x into tiles, and would compute sixteen columns; this takes half the time.
constexpr int kFewClasses = 3, kPixels = 4;
constexpr int64_t kFewSerialBelow = 65536;  // kSerialBelow for them, in elements of x

template <class T, int classes, int pixels>
DMTL_INLINE void few_logits(const Params& p, const float* weight, int64_t span, const T* const* from, float (*out)[kPixels]) {
    F32x16 sum[classes][pixels];
    for (int c = 0; c < classes; ++c)
        for (int i = 0; i < pixels; ++i) sum[c][i] = F32x16::zero();
    by_sixteens(p.channels, [&](int64_t k, int64_t count) {
        F32x16 x[pixels];
        for (int i = 0; i < pixels; ++i) x[i] = part(from[i], k, count);
        for (int c = 0; c < classes; ++c) {
            const F32x16 w = F32x16::load(weight + c * span + k);
            for (int i = 0; i < pixels; ++i) sum[c][i] = fma(x[i], w, sum[c][i]);
        }
    });
    for (int c = 0; c < classes; ++c)
        for (int i = 0; i < pixels; ++i) out[c][i] = sum_of(sum[c][i]);
}

template <class T, int classes>
void few_classes(const Params& p, int threads) {
    const int64_t span = padded_to_lanes(p.channels), cells = p.h * p.w;
    float* weight = Workspace::floats(Slot::weights, classes * span);
    for (int64_t i = 0; i < classes * span; ++i)
        weight[i] = i % span < p.channels ? load(static_cast<const T*>(p.weight) + i / span * p.channels + i % span) : 0.0f;
    parallel_for(p.rows * p.h, p.rows * cells * p.channels < kFewSerialBelow ? 1 : threads, [&](int64_t item) {
        const T* row = static_cast<const T*>(p.x) + item / p.h * p.stride_n + item % p.h * p.stride_y;
        float* out = p.logits + item / p.h * classes * cells + item % p.h * p.w;
        for (int64_t x = 0; x < p.w; x += kPixels) {
            const int count = p.w - x < kPixels ? static_cast<int>(p.w - x) : kPixels;
            const T* from[kPixels];
            for (int i = 0; i < kPixels; ++i) from[i] = row + (x + (i < count ? i : 0)) * p.stride_x;
            float logits[classes][kPixels];
            few_logits<T, classes, kPixels>(p, weight, span, from, logits);
            for (int c = 0; c < classes; ++c) {
                const float bias = p.bias == nullptr ? 0.0f : load(static_cast<const T*>(p.bias) + c);
                for (int i = 0; i < count; ++i) out[c * cells + x + i] = logits[c][i] + bias;
            }
        }
    });
}

template <class T>
void head(const Params& p, int threads) {
    if (p.weight != nullptr && p.stride_c == 1 && p.classes <= kFewClasses) {
        if (p.classes == 1) return few_classes<T, 1>(p, threads);
        if (p.classes == 2) return few_classes<T, 2>(p, threads);
        return few_classes<T, 3>(p, threads);
    }
    const int64_t cells = p.h * p.w;
    if (p.weight == nullptr) {
        parallel_for(p.rows * p.classes * p.h, threads, [&](int64_t item) {
            const int64_t plane = item / p.h, y = item % p.h;
            const T* from = static_cast<const T*>(p.x) + plane / p.classes * p.stride_n + plane % p.classes * p.stride_c +
                            y * p.stride_y;
            for (int64_t x = 0; x < p.w; ++x) p.logits[item * p.w + x] = load(from + x * p.stride_x);
        });
        return;
    }
    float* packed = Workspace::floats(Slot::weights, packed_floats(p.channels, p.classes));
    pack_columns(static_cast<const T*>(p.weight), p.channels, p.channels, p.classes, packed, threads);
    const T* bias = static_cast<const T*>(p.bias);
    gemm(p.rows * cells, {packed, p.channels, p.classes}, threads, Pixels<T>{p},
         [&](int64_t row, int64_t column, const float* values, int64_t count) {
             float* out = p.logits + (row / cells * p.classes + column) * cells + row % cells;
             for (int64_t j = 0; j < count; ++j)
                 out[j * cells] = bias == nullptr ? values[j] : values[j] + load(bias + column + j);
         });
}

// The work of one thread on one row of the map. A buffer has `span` floats, a multiple of the lanes; `planes` buffers have
// `factor` phases each.
struct RowWork {
    const Params& p;
    int64_t count;  // numbers j that the row's width needs
    int64_t span;
    float* line;      // logits of one class between two of their rows, from number -1 on
    float* value[3];  // [factor, span]
    int32_t* index;   // [factor, span]

    static int64_t span_of(const Params& p) { return padded_to_lanes(p.w + 2) + kLanes16; }

    explicit RowWork(const Params& params) : p(params), count(between(p.width - 1, p.factor).low + 2), span(span_of(p)) {
        line = Workspace::floats(Slot::other, span * (1 + 4 * p.factor));
        for (int i = 0; i < 3; ++i) value[i] = line + span * (1 + i * p.factor);
        index = reinterpret_cast<int32_t*>(line + span * (1 + 3 * p.factor));
        for (int64_t j = p.w + 2; j < span; ++j) line[j] = 0.0f;  // lanes beyond the row only need a harmless value
    }

    void interpolate_rows(const float* upper, const float* lower, float down) const {
#pragma omp simd
        for (int64_t x = 0; x < p.w; ++x) line[x + 1] = lerp(upper[x], lower[x], down);
        line[0] = line[1];
        line[p.w + 1] = line[p.w];
    }

    // Calls use(number j, offset of the phase + j, interpolated value) for all phases.
    template <class Use>
    void each(const Use& use) const {
        const int64_t whole = padded_to_lanes(count);
        for (int64_t phase = 0; phase < p.factor; ++phase) {
            const float across = way(phase, p.factor);
            const int64_t offset = phase * span;
#pragma omp simd
            for (int64_t j = 0; j < whole; ++j) use(offset + j, lerp(line[j], line[j + 1], across));
        }
    }

    // Writes the buffer of all phases as a row of the map.
    template <class In, class Out>
    void interleave(const In* from, Out* to) const {
        for (int64_t j = 0; j < count; ++j) {
            const int64_t x = p.factor * (j - 1) + p.factor / 2;
            const int64_t first = x < 0 ? -x : 0, last = p.width - x < p.factor ? p.width - x : p.factor;
            for (int64_t phase = first; phase < last; ++phase) to[x + phase] = static_cast<Out>(from[phase * span + j]);
        }
    }
};

void decode_row(const Params& p, int64_t item) {
    const RowWork work(p);
    const int64_t row = item / p.height, y = item % p.height;
    const Between at = between(y, p.factor);
    const float down = way(at.phase, p.factor);
    const float* upper = p.logits + (row * p.classes * p.h + at.first(p.h)) * p.w;
    const float* lower = p.logits + (row * p.classes * p.h + at.second(p.h)) * p.w;
    const int64_t plane = p.h * p.w;
    const DecodeKind kind = static_cast<DecodeKind>(p.kind);
    float *best = work.value[0], *map = static_cast<float*>(p.out) + item * p.width;
    work.interpolate_rows(upper, lower, down);
    if (kind == DecodeKind::argmax) {
        int32_t* index = work.index;
        work.each([=](int64_t i, float u) { best[i] = u, index[i] = 0; });
        for (int64_t c = 1; c < p.classes; ++c) {
            work.interpolate_rows(upper + c * plane, lower + c * plane, down);
            const int32_t number = static_cast<int32_t>(c);
            work.each([=](int64_t i, float u) {
                const bool lead = leads(u, best[i]);
                best[i] = lead ? u : best[i];
                index[i] = lead ? number : index[i];
            });
        }
        work.interleave(index, static_cast<int64_t*>(p.out) + item * p.width);
    } else if (kind == DecodeKind::unit) {
        float *u1 = work.value[1], *u2 = work.value[2];
        work.each([=](int64_t i, float u) { best[i] = u; });
        work.interpolate_rows(upper + plane, lower + plane, down);
        work.each([=](int64_t i, float u) { u1[i] = u; });
        work.interpolate_rows(upper + 2 * plane, lower + 2 * plane, down);
        work.each([=](int64_t i, float u) {
            const float scale = unit_scale(best[i] * best[i] + u1[i] * u1[i] + u * u);
            best[i] *= scale, u1[i] *= scale, u2[i] = u * scale;
        });
        for (int64_t c = 0; c < 3; ++c)
            work.interleave(work.value[c], static_cast<float*>(p.out) + ((row * 3 + c) * p.height + y) * p.width);
    } else {
        if (kind == DecodeKind::softmax) {
            work.each([=](int64_t i, float u) { best[i] = u; });
            work.interpolate_rows(upper + plane, lower + plane, down);
            work.each([=](int64_t i, float u) { best[i] = sigmoid32(u - best[i]); });
        } else if (kind == DecodeKind::sigmoid) {
            work.each([=](int64_t i, float u) { best[i] = sigmoid32(u); });
        } else if (kind == DecodeKind::exp) {
            work.each([=](int64_t i, float u) { best[i] = exp32(u); });
        } else {
            work.each([=](int64_t i, float u) { best[i] = u; });
        }
        work.interleave(best, map);
    }
}

}  // namespace

static void decode_map(const Params& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { head<std::remove_pointer_t<decltype(storage)>>(params, threads); });
    const int64_t items = params.rows * params.height;
    const DecodeKind kind = static_cast<DecodeKind>(params.kind);
    const int64_t pixel_bytes = kind == DecodeKind::argmax ? 8 : kind == DecodeKind::unit ? 12 : 4;
    expect_writes(params.out, items * params.width * pixel_bytes);
    parallel_for(items, items * params.width < kSerialBelow ? 1 : threads, [&](int64_t item) { decode_row(params, item); });
}

DMTL_KERNELS(decode_map, cpu_kernel<Params, &decode_map>("decode_map", kDecodeMapFields))

}  // namespace dmtl::DMTL_ISA
