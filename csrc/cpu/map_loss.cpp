// map_loss and its backward. A band consists of the pixel rows between two rows of logits (half as many above the first and
// below the last row). Forward, each band adds up the losses of its pixels. Backward, each band computes its contribution to
// the two rows of logits, and each row of logits adds the contributions of its two bands. The order of all sums is independent
// of the number of threads and of the instruction set.
//
// In the buffers, the pixels f k + q of a row with the same q are next to each other (f = factor). They are all equally far from
// the logits k - 1 and k (q < f / 2), or k and k + 1, between which they are, so lanes run along k. Indices outside the row are
// clamped to its ends.
#include "dmtl/decode_map.h"
#include "dmtl/map_loss.h"
#include "dmtl/parallel.h"
#include "dmtl/simd.h"
#include "dmtl/storage.h"
#include "dmtl/workspace.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {
namespace {

using Params = MapLossParams;

// The work of one thread on one band. Buffers along k have `span` floats, a multiple of the lanes.
template <int64_t kFactor>
struct Band {
    const Params& p;
    const int64_t row, number;  // the band is between rows number - 1 and number of the logits
    const int64_t count;        // number of lanes k that the width of the frame needs, rounded up
    const int64_t span;
    float* line;   // [channels, span]: logits interpolated between their two rows, from index -1 on
    float* d_line; // [channels, span], backward
    float* z;      // [channels, span]: interpolated logits of one q, later overwritten by results
    float* y;      // [label channels, kFactor, span]
    float* plain;  // [kFactor * span]: one row of the label, from left to right
    float *a, *b, *c, *d;  // [span]

    Band(const Params& params, int64_t item)
        : p(params), row(item / (p.h + 1)), number(item % (p.h + 1)), count(padded_to_lanes((p.width + kFactor - 1) / kFactor)),
          span(padded_to_lanes(p.w + 2) + kLanes16) {
        const int64_t lines = 3 * p.channels + kFactor * label_channels() + kFactor + 4;
        line = Workspace::floats(Slot::other, lines * span);
        d_line = line + p.channels * span;
        z = d_line + p.channels * span;
        y = z + p.channels * span;
        plain = y + kFactor * label_channels() * span;
        a = plain + kFactor * span;
        b = a + span, c = b + span, d = c + span;
        for (int64_t i = 0; i < p.channels * span; ++i) line[i] = 0.0f;  // lanes beyond the row only need a harmless value
    }

    int64_t label_channels() const { return kind() == LossKind::unit ? 3 : 1; }
    LossKind kind() const { return static_cast<LossKind>(p.kind); }
    int64_t first_y() const { return number == 0 ? 0 : kFactor * number - kFactor / 2; }
    int64_t last_y() const {
        const int64_t end = kFactor * number + kFactor / 2, frame = p.height;
        return number == p.h ? (frame < kFactor * p.h ? frame : kFactor * p.h) : end < frame ? end : frame;
    }
    // The position of a pixel row between the upper (0) and the lower (1) row of logits.
    float down(int64_t pixel_row) const { return way(between(pixel_row, kFactor).phase, kFactor); }
    static float across(int64_t q) { return way((q + kFactor / 2) % kFactor, kFactor); }
    static int64_t first(int64_t q) { return q < kFactor / 2 ? 0 : 1; }  // index in `line` of the left logit of k = 0

    void interpolate_rows(int64_t pixel_row) const {
        const int64_t plane = p.h * p.w, upper = number > 0 ? number - 1 : 0, lower = number < p.h ? number : p.h - 1;
        const float* logits = p.wide + row * p.channels * plane;
        const float share = down(pixel_row);
        for (int64_t channel = 0; channel < p.channels; ++channel, logits += plane) {
            float* to = line + channel * span;
            const float *above = logits + upper * p.w, *below = logits + lower * p.w;
#pragma omp simd
            for (int64_t x = 0; x < p.w; ++x) to[x + 1] = lerp(above[x], below[x], share);
            to[0] = to[1];
            to[p.w + 1] = to[p.w];
        }
    }

    void interpolate(int64_t q) const {
        const float share = across(q);
        for (int64_t channel = 0; channel < p.channels; ++channel) {
            const float* from = line + channel * span + first(q);
            float* to = z + channel * span;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) to[k] = lerp(from[k], from[k + 1], share);
        }
    }

    // Reads the labels of one pixel row into y, in the form that the losses need. Counts valid pixels and those above one half.
    template <class Label>
    void read_labels(int64_t pixel_row, int32_t* counted) const {
        const int64_t plane = p.height * p.width;
        const Label* label = static_cast<const Label*>(p.label) + row * label_channels() * plane + pixel_row * p.width;
        for (int64_t channel = 0; channel < label_channels(); ++channel) {
            const float rest = kind() == LossKind::unit || kind() == LossKind::absolute ? kUnknown : kNone;
            for (int64_t x = p.width; x < kFactor * count; ++x) plain[x] = rest;
            if (kind() == LossKind::unit) {
                unit_labels(label, plane, channel);
            } else {
                plain_labels(label);
            }
            for (int64_t q = 0; q < kFactor; ++q) {
                float* to = y + (channel * kFactor + q) * span;
#pragma omp simd
                for (int64_t k = 0; k < count; ++k) to[k] = plain[kFactor * k + q];
            }
            if (channel > 0) continue;
            int32_t valid = 0, above = 0;
            const float lowest = rest < 0.0f ? 0.0f : -kLargest;
#pragma omp simd reduction(+ : valid, above)
            for (int64_t x = 0; x < p.width; ++x) {
                valid += plain[x] >= lowest ? 1 : 0;
                above += plain[x] > 0.5f ? 1 : 0;
            }
            counted[0] += valid, counted[1] += kind() == LossKind::logistic ? above : 0;
        }
    }

    template <class Label>
    void plain_labels(const Label* label) const {
        const float ignore = p.ignore, classes = static_cast<float>(p.channels);
        float* to = plain;
        if (kind() == LossKind::cross_entropy) {
#pragma omp simd
            for (int64_t x = 0; x < p.width; ++x) {
                float v = known(static_cast<float>(label[x]), ignore);
                v = v < classes ? v : kNone;  // NaN is not
                v = v >= 0.0f ? v : kNone;
                to[x] = static_cast<float>(static_cast<int32_t>(v));
            }
        } else if (kind() == LossKind::logistic) {
#pragma omp simd
            for (int64_t x = 0; x < p.width; ++x) {
                const float v = known(static_cast<float>(label[x]), ignore), which = v > 0.5f ? 1.0f : 0.0f;
                to[x] = v == v ? which : kNone;
            }
        } else {
            const float lowest = p.positive != 0 ? 0.0f : -std::numeric_limits<float>::infinity();
#pragma omp simd
            for (int64_t x = 0; x < p.width; ++x) {
                const float v = known(static_cast<float>(label[x]), ignore);
                to[x] = v > lowest ? v : kUnknown;
            }
            if (p.log == 0) return;
#pragma omp simd
            for (int64_t x = 0; x < p.width; ++x) to[x] = log32(to[x]);
        }
    }

    template <class Label>
    void unit_labels(const Label* label, int64_t plane, int64_t channel) const {
        const float ignore = p.ignore;
        const Label *label1 = label + plane, *label2 = label1 + plane, *chosen = label + channel * plane;
        float* to = plain;
#pragma omp simd
        for (int64_t x = 0; x < p.width; ++x) {
            const float v0 = known(static_cast<float>(label[x]), ignore), v1 = known(static_cast<float>(label1[x]), ignore);
            const float v2 = known(static_cast<float>(label2[x]), ignore);
            const float size = std::fabs(v0) + std::fabs(v1) + std::fabs(v2);  // NaN where one is
            to[x] = size > 0.0f ? static_cast<float>(chosen[x]) : kUnknown;
        }
    }

    // Computes exp(z - largest z) in z, their sum in b, and z - largest z of the labelled class in c.
    void exponentials(const float* id) const {
        float *largest = a, *sum = b, *picked = c;
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) largest[k] = z[k], sum[k] = 0.0f, picked[k] = 0.0f;
        for (int64_t channel = 1; channel < p.channels; ++channel) {
            const float* from = z + channel * span;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) largest[k] = from[k] > largest[k] ? from[k] : largest[k];
        }
        for (int64_t channel = 0; channel < p.channels; ++channel) {
            float* at = z + channel * span;
            const float number_of = static_cast<float>(channel);
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
                const float less = at[k] - largest[k], e = exp32(less);
                picked[k] = id[k] == number_of ? less : picked[k];
                sum[k] += e;
                at[k] = e;
            }
        }
    }

    // Computes the losses of the pixels of one q in a; for `logistic`, those with a label above one half are in b instead. The
    // loss of a pixel without a label is 0.
    void losses(int64_t q) const {
        const float* label = y + q * span;
        float *to = a, *to_above = b;
        const float *z0 = z, *z1 = z + span, *z2 = z + 2 * span;
        if (kind() == LossKind::cross_entropy) {
            exponentials(label);
            const float *sum = b, *picked = c;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) to[k] = label[k] >= 0.0f ? log32(sum[k]) - picked[k] : 0.0f;
        } else if (kind() == LossKind::logistic) {
            const bool two = p.channels == 2;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
                const float m = two ? z1[k] - z0[k] : z0[k];
                const float loss = softplus32(label[k] > 0.5f ? -m : m);
                to[k] = label[k] == 0.0f ? loss : 0.0f;
                to_above[k] = label[k] > 0.5f ? loss : 0.0f;
            }
        } else if (kind() == LossKind::unit) {
            const float *y1 = label + kFactor * span, *y2 = y1 + kFactor * span;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
                const float scale = unit_scale(z0[k] * z0[k] + z1[k] * z1[k] + z2[k] * z2[k]);
                const float loss = std::fabs(z0[k] * scale - label[k]) + std::fabs(z1[k] * scale - y1[k]) +
                                   std::fabs(z2[k] * scale - y2[k]);
                to[k] = label[k] == label[k] ? loss : 0.0f;
            }
        } else {
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) to[k] = label[k] == label[k] ? std::fabs(z0[k] - label[k]) : 0.0f;
        }
    }

    // Replaces z by the gradients of the pixels of one q, times `factor`.
    void gradients(int64_t q, float factor, const Weights& weights) const {
        const float* label = y + q * span;
        float *z0 = z, *z1 = z + span, *z2 = z + 2 * span;
        if (kind() == LossKind::cross_entropy) {
            exponentials(label);
            float* share = d;
            const float* sum = b;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) share[k] = factor / sum[k];
            for (int64_t channel = 0; channel < p.channels; ++channel) {
                float* at = z + channel * span;
                const float number_of = static_cast<float>(channel);
#pragma omp simd
                for (int64_t k = 0; k < count; ++k) {
                    const float g = at[k] * share[k] - (label[k] == number_of ? factor : 0.0f);
                    at[k] = label[k] >= 0.0f ? g : 0.0f;
                }
            }
        } else if (kind() == LossKind::logistic) {
            const bool two = p.channels == 2;
            const float above = -weights.positive * factor, below = weights.negative * factor;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
                const float m = two ? z1[k] - z0[k] : z0[k];
                const bool positive = label[k] > 0.5f;
                const float g = (positive ? above : below) * sigmoid32(positive ? -m : m);
                a[k] = label[k] >= 0.0f ? g : 0.0f;
            }
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) z0[k] = two ? -a[k] : a[k];
            if (!two) return;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) z1[k] = a[k];
        } else if (kind() == LossKind::unit) {
            const float *y1 = label + kFactor * span, *y2 = y1 + kFactor * span;
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) {
                const float squares = z0[k] * z0[k] + z1[k] * z1[k] + z2[k] * z2[k];
                const float scale = unit_scale(squares), size = scale * factor;
                const float u0 = z0[k] * scale, u1 = z1[k] * scale, u2 = z2[k] * scale;
                const float s0 = sign32(u0 - label[k]), s1 = sign32(u1 - y1[k]), s2 = sign32(u2 - y2[k]);
                const float radial = squares < 1e-8f ? 0.0f : u0 * s0 + u1 * s1 + u2 * s2;
                const bool valid = label[k] == label[k];
                z0[k] = valid ? size * (s0 - u0 * radial) : 0.0f;
                z1[k] = valid ? size * (s1 - u1 * radial) : 0.0f;
                z2[k] = valid ? size * (s2 - u2 * radial) : 0.0f;
            }
        } else {
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) z0[k] = label[k] == label[k] ? factor * sign32(z0[k] - label[k]) : 0.0f;
        }
    }

    // Adds the gradients of the pixels of one q to those of the logits on their left and right.
    void spread(int64_t q) const {
        const float right = across(q), left = 1.0f - right;
        for (int64_t channel = 0; channel < p.channels; ++channel) {
            const float* g = z + channel * span;
            float* to = d_line + channel * span + first(q);
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) to[k] = fma32(left, g[k], to[k]);
#pragma omp simd
            for (int64_t k = 0; k < count; ++k) to[k + 1] = fma32(right, g[k], to[k + 1]);
        }
    }

    // Divides the gradients of a line of logits between the row above the band and the row below it.
    void share_rows(float* parts, float lower) const {
        for (int64_t channel = 0; channel < p.channels; ++channel) {
            float *from = d_line + channel * span, *above = parts + channel * p.w, *below = above + p.channels * p.w;
            from[1] += from[0];
            from[p.w] += from[p.w + 1];
#pragma omp simd
            for (int64_t x = 0; x < p.w; ++x) {
                above[x] = fma32(1.0f - lower, from[x + 1], above[x]);
                below[x] = fma32(lower, from[x + 1], below[x]);
            }
        }
    }

    template <class Label>
    void forward() const {
        const int64_t item = row * (p.h + 1) + number;
        double total[2] = {};
        int32_t counted[2] = {};
        for (int64_t pixel_row = first_y(); pixel_row < last_y(); ++pixel_row) {
            interpolate_rows(pixel_row);
            read_labels<Label>(pixel_row, counted);
            F32x16 below = F32x16::zero(), above = F32x16::zero();
            for (int64_t q = 0; q < kFactor; ++q) {
                interpolate(q);
                losses(q);
                for (int64_t k = 0; k < count; k += kLanes16) below = below + F32x16::load(a + k);
                if (kind() != LossKind::logistic) continue;
                for (int64_t k = 0; k < count; k += kLanes16) above = above + F32x16::load(b + k);
            }
            float lanes[2][kLanes16];
            below.store(lanes[0]), above.store(lanes[1]);
            for (int side = 0; side < 2; ++side)
                for (float lane : lanes[side]) total[side] += static_cast<double>(lane);
        }
        for (int side = 0; side < 2; ++side) {
            p.sums[2 * item + side] = total[side];
            p.band_counts[2 * item + side] = counted[side];
        }
    }

    template <class Label>
    void backward() const {
        float* parts = p.parts + (row * (p.h + 1) + number) * 2 * p.channels * p.w;
        for (int64_t i = 0; i < 2 * p.channels * p.w; ++i) parts[i] = 0.0f;
        const int32_t* counts = p.counts + 2 * row;
        const Weights weights(p, counts);
        const float factor = p.grad[row] / static_cast<float>(counts[0] > 0 ? counts[0] : 1);
        int32_t counted[2] = {};
        for (int64_t pixel_row = first_y(); pixel_row < last_y(); ++pixel_row) {
            interpolate_rows(pixel_row);
            read_labels<Label>(pixel_row, counted);
            for (int64_t i = 0; i < p.channels * span; ++i) d_line[i] = 0.0f;
            for (int64_t q = 0; q < kFactor; ++q) {
                interpolate(q);
                gradients(q, factor, weights);
                spread(q);
            }
            share_rows(parts, down(pixel_row));
        }
    }
};

// Copies the logits as contiguous float32; those that are not finite become NaN.
template <class T>
void widen(const Params& p, int threads) {
    parallel_for(p.rows * p.channels * p.h, threads, [&](int64_t item) {
        const int64_t plane = item / p.h, y = item % p.h;
        const T* from = static_cast<const T*>(p.logits) + plane / p.channels * p.stride_n + plane % p.channels * p.stride_c +
                        y * p.stride_y;
        for (int64_t x = 0; x < p.w; ++x) {
            const float logit = load(from + x * p.stride_x);
            p.wide[item * p.w + x] = logit + (logit - logit);
        }
    });
}

template <class Body>
void for_each_band(const Params& p, int threads, const Body& body) {
    parallel_for(p.rows * (p.h + 1), threads, [&](int64_t item) {
        if (p.factor == 8) return body(Band<8>(p, item));
        body(Band<4>(p, item));
    });
}

int threads_for(const Params& p, int threads) { return p.rows * p.height * p.width < kSerialBelow ? 1 : threads; }

void map_loss(const Params& p, DType dtype, int threads) {
    threads = threads_for(p, threads);
    with_storage(dtype, [&](auto* storage) { widen<std::remove_pointer_t<decltype(storage)>>(p, threads); });
    for_each_band(p, threads, [&](const auto& band) {
        if (p.label_bytes == 1) return band.template forward<uint8_t>();
        band.template forward<float>();
    });
    for (int64_t row = 0; row < p.rows; ++row) {
        double below = 0.0, above = 0.0;
        int32_t* counts = p.counts + 2 * row;
        counts[0] = counts[1] = 0;
        for (int64_t i = 2 * row * (p.h + 1); i < 2 * (row + 1) * (p.h + 1); i += 2) {
            below += p.sums[i], above += p.sums[i + 1];
            counts[0] += p.band_counts[i], counts[1] += p.band_counts[i + 1];
        }
        if (static_cast<LossKind>(p.kind) == LossKind::logistic) {
            const Weights weights(p, counts);
            below = static_cast<double>(weights.negative) * below + static_cast<double>(weights.positive) * above;
        }
        p.loss[row] = static_cast<float>(below / static_cast<double>(counts[0] > 0 ? counts[0] : 1));
    }
}

template <class T>
void gather(const Params& p, int threads) {
    parallel_for(p.rows * p.h, threads, [&](int64_t item) {
        const int64_t row = item / p.h, y = item % p.h, side = p.channels * p.w;
        const float* parts = p.parts + (row * (p.h + 1) + y) * 2 * side;  // parts of the band above y; those below y follow
        T* to = static_cast<T*>(p.d_logits) + row * p.d_stride_n + y * p.d_stride_y;
        for (int64_t channel = 0; channel < p.channels; ++channel)
            for (int64_t x = 0; x < p.w; ++x) {
                const float* at = parts + channel * p.w + x;
                float sum = at[side] + at[2 * side];
                if (y == 0) sum += at[0];  // at the border, both rows of a band are the same row
                if (y == p.h - 1) sum += at[3 * side];
                store(to + channel * p.d_stride_c + x * p.d_stride_x, sum);
            }
    });
}

void map_loss_backward(const Params& p, DType dtype, int threads) {
    threads = threads_for(p, threads);
    with_storage(dtype, [&](auto* storage) { widen<std::remove_pointer_t<decltype(storage)>>(p, threads); });
    for_each_band(p, threads, [&](const auto& band) {
        if (p.label_bytes == 1) return band.template backward<uint8_t>();
        band.template backward<float>();
    });
    with_storage(dtype, [&](auto* storage) { gather<std::remove_pointer_t<decltype(storage)>>(p, threads); });
}

}  // namespace

DMTL_KERNELS(map_loss, cpu_kernel<Params, &map_loss>("map_loss", kMapLossFields),
             cpu_kernel<Params, &map_loss_backward>("map_loss_backward", kMapLossFields))

}  // namespace dmtl::DMTL_ISA
