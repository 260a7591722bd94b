// Depthwise convolution of channels-last maps, and both its gradients. Compiled once per instruction set (DMTL_ISA).
//
// Lanes are channels, so that a sum has one order whatever the width of a register. The taps come as [k k, channels] in
// float32.
#include "dmtl/gemm.h"
#include "dmtl/kernel_table.h"
#include "dmtl/storage.h"
#include "dmtl/tokens.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kTapFloats = 4096;     // taps of neighbouring channels that stay in the first cache
constexpr int64_t kItemsPerThread = 2;   // pieces of the weight gradient, so that a slow thread has fewer of them

// Sizes: images, channels and the taps' side k; x has height x width pixels, out has out_height x out_width.
#define DMTL_DEPTHWISE_SIZES int64_t images, channels, height, width, out_height, out_width, k, stride, padding

// The convolution, or its data gradient: then x is the incoming gradient and out is that of the input.
struct DepthwiseConvParams {
    void* out;
    const void* x;
    const float* taps;
    DMTL_DEPTHWISE_SIZES;
};

struct DepthwiseConvWeightParams {
    float* d_taps;
    const void* x;
    const void* grad;
    DMTL_DEPTHWISE_SIZES;
};

#define DMTL_DEPTHWISE_FIELDS(Params) \
    DMTL_FIELDS(Params, images, channels, height, width, out_height, out_width, k, stride, padding)

constexpr Field kDepthwiseConvFields[] = {
    DMTL_FIELDS(DepthwiseConvParams, out, x, taps),
    DMTL_DEPTHWISE_FIELDS(DepthwiseConvParams),
};

constexpr Field kDepthwiseConvWeightFields[] = {
    DMTL_FIELDS(DepthwiseConvWeightParams, d_taps, x, grad),
    DMTL_DEPTHWISE_FIELDS(DepthwiseConvWeightParams),
};

// The filter's positions along one axis for a line of pixels: pixel `start` + t `step` of the output reads x at
// t `stride` + shift[i] with tap[i]. `inner` are the t for which all of these lie inside x.
struct Line {
    int64_t start, step, stride, count;
    int taps = 0;
    int64_t tap[5], shift[5];
    Range inner{0, 0};

    // The pixels of phase `phase` (counted by `step`) of an axis with `out_size` pixels, which reads `size` pixels.
    Line(int64_t phase, int64_t step, int64_t stride, int64_t size, int64_t out_size)
        : start(phase), step(step), stride(stride), count((out_size - phase + step - 1) / step), size_(size) {}
    void add(int64_t v, int64_t at) {
        tap[taps] = v, shift[taps++] = at;
        const int64_t before = at < 0 ? (-at + stride - 1) / stride : 0;
        const int64_t behind = size_ - at <= 0 ? 0 : (size_ - at - 1) / stride + 1;
        inner = taps == 1 ? Range{before, behind} : Range{before > inner.begin ? before : inner.begin,
                                                          behind < inner.end ? behind : inner.end};
        if (inner.begin > count) inner.begin = count;
        if (inner.end > count) inner.end = count;
        if (inner.end < inner.begin) inner.end = inner.begin;
    }
    bool inside(int64_t t, int i) const { return t * stride + shift[i] >= 0 && t * stride + shift[i] < size_; }

private:
    int64_t size_;
};

// Forward, an output pixel reads k neighbouring pixels, `stride` apart from pixel to pixel ...
struct Forward {
    static int64_t phases(int64_t) { return 1; }
    template <class Params>
    static Line line(int64_t, const Params& p, int64_t size, int64_t out_size) {
        Line line(0, 1, p.stride, size, out_size);
        for (int64_t v = 0; v < p.k; ++v) line.add(v, v - p.padding);
        return line;
    }
};

// ... backward, a pixel gathers from the positions that read it. Only pixels of the same phase use the same taps.
struct DataGradient {
    static int64_t phases(int64_t stride) { return stride; }
    static Line line(int64_t phase, const DepthwiseConvParams& p, int64_t size, int64_t out_size) {
        Line line(phase, p.stride, 1, size, out_size);
        for (int64_t v = 0; v < p.k; ++v) {
            const int64_t scaled = phase + p.padding - v;
            if (scaled % p.stride == 0) line.add(v, scaled / p.stride);
        }
        return line;
    }
};

// The rows of x and of taps that one row of the output reads.
template <class T>
struct Rows {
    int count = 0;
    const T* x[5];
    const float* taps[5];
    int64_t channels;
};

template <class T>
DMTL_INLINE void put(T* out, F32x16 values, int64_t lanes) {
    if constexpr (std::is_same_v<T, float>) return values.store(out, lanes);
    float wide[kLanes16];
    values.store(wide);
    round_to(out, wide, lanes);
}

// The `n` pixels from t on, for `lanes` channels from c on. Unless `checked`, all taps must be inside.
template <int n, bool checked, class T>
DMTL_INLINE void gather_pixels(const Rows<T>& rows, const Line& line, int64_t t, int64_t c, int64_t lanes, T* out) {
    const int64_t C = rows.channels;
    F32x16 sum[n];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) sum[i] = F32x16::zero();
    for (int u = 0; u < rows.count; ++u)
        for (int v = 0; v < line.taps; ++v) {
            const F32x16 tap = F32x16::load(rows.taps[u] + line.tap[v] * C + c, lanes);
            const T* x = rows.x[u] + (t * line.stride + line.shift[v]) * C + c;
#pragma GCC unroll 8
            for (int i = 0; i < n; ++i)
                if (!checked || line.inside(t + i, v)) sum[i] = fma(tap, part(x, i * line.stride * C, lanes), sum[i]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) put(out + (line.start + (t + i) * line.step) * C + c, sum[i], lanes);
}

// The same for the channels [c, end): neighbours in memory are read one after another.
template <int n, bool checked, class T>
void gather_channels(const Rows<T>& rows, const Line& line, int64_t t, int64_t c, int64_t end, T* out) {
    for (; c + kLanes16 <= end; c += kLanes16) gather_pixels<n, checked>(rows, line, t, c, kLanes16, out);
    if (c < end) gather_pixels<n, checked>(rows, line, t, c, end - c, out);
}

template <class T>
void gather_line(const Rows<T>& rows, const Line& line, int64_t c, int64_t end, T* out) {
    int64_t t = 0;
    for (; t + kSumsAtOnce <= line.count; t += kSumsAtOnce) {
        const bool inner = t >= line.inner.begin && t + kSumsAtOnce <= line.inner.end;
        inner ? gather_channels<kSumsAtOnce, false>(rows, line, t, c, end, out)
              : gather_channels<kSumsAtOnce, true>(rows, line, t, c, end, out);
    }
    for (; t < line.count; ++t) gather_channels<1, true>(rows, line, t, c, end, out);
}

// An item is one row of one image's output.
template <class T, class Direction>
void gather(const DepthwiseConvParams& p, int threads) {
    const int64_t C = p.channels, size = p.images * p.out_height * p.out_width * C;
    if (size == 0) return;
    expect_writes(p.out, size * static_cast<int64_t>(sizeof(T)), threads);
    if (size < kSerialBelow) threads = 1;
    const int64_t run = kTapFloats / (p.k * p.k) / kLanes16 * kLanes16;
    parallel_for(p.images * p.out_height, threads, [&](int64_t item) {
        const int64_t i = item % p.out_height, phases = Direction::phases(p.stride);
        const T* x = static_cast<const T*>(p.x) + item / p.out_height * p.height * p.width * C;
        const Line down = Direction::line(i % phases, p, p.height, p.out_height);
        Rows<T> rows;
        rows.channels = C;
        for (int u = 0; u < down.taps; ++u) {
            if (!down.inside(i / phases, u)) continue;
            rows.taps[rows.count] = p.taps + down.tap[u] * p.k * C;
            rows.x[rows.count++] = x + (i / phases * down.stride + down.shift[u]) * p.width * C;
        }
        for (int64_t phase = 0; phase < phases && phase < p.out_width; ++phase) {
            const Line line = Direction::line(phase, p, p.width, p.out_width);
            for (int64_t c = 0; c < C; c += run)
                gather_line(rows, line, c, c + run < C ? c + run : C, static_cast<T*>(p.out) + item * p.out_width * C);
        }
    });
}

template <class T>
void forward(const DepthwiseConvParams& p, int threads) {
    gather<T, Forward>(p, threads);
}

template <class T>
void data_gradient(const DepthwiseConvParams& p, int threads) {
    gather<T, DataGradient>(p, threads);
}

// The sums of grad times x over one row of positions, for the k taps of a row.
template <int k, bool whole, class T>
void add_row(const Line& line, int64_t C, const T* grad, const T* x, int64_t some, float* sums) {
    const int64_t lanes = whole ? kLanes16 : some;
    F32x16 sum[k];
#pragma GCC unroll 5
    for (int v = 0; v < k; ++v) sum[v] = F32x16::zero();
    const auto edge = [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            const F32x16 g = part(grad, j * C, lanes);
#pragma GCC unroll 5
            for (int v = 0; v < k; ++v)
                if (line.inside(j, v)) sum[v] = fma(g, part(x, (j * line.stride + line.shift[v]) * C, lanes), sum[v]);
        }
    };
    edge(0, line.inner.begin);
    for (int64_t j = line.inner.begin; j < line.inner.end; ++j) {
        const F32x16 g = part(grad, j * C, lanes);
        const T* at = x + (j * line.stride + line.shift[0]) * C;
#pragma GCC unroll 5
        for (int v = 0; v < k; ++v) sum[v] = fma(g, part(at, v * C, lanes), sum[v]);
    }
    edge(line.inner.end, line.count);
#pragma GCC unroll 5
    for (int v = 0; v < k; ++v) (F32x16::load(sums + v * kLanes16) + sum[v]).store(sums + v * kLanes16);
}

// An item is a range of channels, in blocks of 16: all their taps. All channels of a row are read together.
template <int k, class T>
void weight_gradient_of(const DepthwiseConvWeightParams& p, int threads) {
    const int64_t C = p.channels, blocks = lane_groups(C);
    if (p.images * p.height * p.width * C < kSerialBelow) threads = 1;
    const Line line = Forward::line(0, p, p.width, p.out_width);
    const int64_t items = blocks < kItemsPerThread * threads ? blocks : kItemsPerThread * threads;
    parallel_for(items, threads, [&](int64_t item) {
        const Range mine = share(blocks, items, item);
        float* sums = Workspace::floats(Slot::other, mine.size() * k * k * kLanes16);
        for (int64_t i = 0; i < mine.size() * k * k * kLanes16; ++i) sums[i] = 0.0f;
        for (int64_t row = 0; row < p.images * p.out_height; ++row) {
            const T* x = static_cast<const T*>(p.x) + row / p.out_height * p.height * p.width * C;
            const T* grad = static_cast<const T*>(p.grad) + row * p.out_width * C;
            for (int64_t b = mine.begin; b < mine.end; ++b) {
                const int64_t c = b * kLanes16, lanes = C - c < kLanes16 ? C - c : kLanes16;
                for (int64_t u = 0; u < k; ++u) {
                    const int64_t y = row % p.out_height * p.stride + u - p.padding;
                    if (y < 0 || y >= p.height) continue;
                    float* to = sums + ((b - mine.begin) * k + u) * k * kLanes16;
                    const T* from = x + y * p.width * C + c;
                    lanes == kLanes16 ? add_row<k, true>(line, C, grad + c, from, lanes, to)
                                      : add_row<k, false>(line, C, grad + c, from, lanes, to);
                }
            }
        }
        for (int64_t b = mine.begin; b < mine.end; ++b)
            for (int64_t tap = 0; tap < k * k; ++tap) {
                const int64_t c = b * kLanes16, lanes = C - c < kLanes16 ? C - c : kLanes16;
                F32x16::load(sums + ((b - mine.begin) * k * k + tap) * kLanes16).store(p.d_taps + tap * C + c, lanes);
            }
    });
}

template <class T>
void weight_gradient(const DepthwiseConvWeightParams& p, int threads) {
    p.k == 3 ? weight_gradient_of<3, T>(p, threads) : weight_gradient_of<5, T>(p, threads);
}

DMTL_STORAGE_KERNEL(depthwise_conv, DepthwiseConvParams, forward)
DMTL_STORAGE_KERNEL(depthwise_conv_data, DepthwiseConvParams, data_gradient)
DMTL_STORAGE_KERNEL(depthwise_conv_weight, DepthwiseConvWeightParams, weight_gradient)

}  // namespace

DMTL_KERNELS(depthwise_conv, cpu_kernel<DepthwiseConvParams, &depthwise_conv>("depthwise_conv", kDepthwiseConvFields),
             cpu_kernel<DepthwiseConvParams, &depthwise_conv_data>("depthwise_conv_data", kDepthwiseConvFields),
             cpu_kernel<DepthwiseConvWeightParams, &depthwise_conv_weight>("depthwise_conv_weight", kDepthwiseConvWeightFields))

}  // namespace dmtl::DMTL_ISA
