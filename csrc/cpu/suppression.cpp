// Non-maximum suppression of boundary maps (suppress). dmtl/metrics/suppression.py has the formulas; it does the same
// operations in the same order.
#include "dmtl/kernel_table.h"
#include "dmtl/parallel.h"
#include "dmtl/scalar.h"
#include "dmtl/workspace.h"

#include <cmath>

namespace dmtl::DMTL_ISA {
namespace {

struct SuppressParams {
    double* out;        // [h, w]
    const double* map;  // [h, w]
    int64_t h, w;
    int64_t margin;     // number of outermost rows and columns in which boundaries fade out
    double generosity;
};

constexpr Field kSuppressFields[] = {DMTL_FIELDS(SuppressParams, out, map, h, w, margin, generosity)};

constexpr int64_t kRadius = 4, kWidth = kRadius + 1;  // the triangle is two running sums of kWidth

double* doubles(Slot slot, int64_t count) {
    return static_cast<double*>(Workspace::get(slot, count * static_cast<int64_t>(sizeof(double))));
}

// The index in [0, n) of position i of a row that is continued by mirroring.
int64_t mirrored(int64_t i, int64_t n) {
    i = (i % (2 * n) + 2 * n) % (2 * n);
    return i < n ? i : 2 * n - 1 - i;
}

// to[x] = the sum, in order, of kWidth rows that are `apart` elements apart, divided by `divisor`.
void running_sum(double* to, const double* from, int64_t apart, int64_t count, double divisor) {
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) {
        const double* at = from + x;
        to[x] = (at[0] + at[apart] + at[2 * apart] + at[3 * apart] + at[4 * apart]) / divisor;
    }
}

// The derivative of f at i in [0, n).
template <class Function>
DMTL_INLINE double difference(const Function& f, int64_t i, int64_t n) {
    if (n == 1) return 0.0;
    if (i == 0) return f(1) - f(0);
    if (i == n - 1) return f(i) - f(i - 1);
    return (f(i + 1) - f(i - 1)) / 2.0;
}

DMTL_INLINE double clipped(double at, int64_t n) {
    const double most = static_cast<double>(n) - 1.001;
    return at < 0.0 || n == 1 ? 0.0 : at > most ? most : at;
}

double bilinear(const SuppressParams& p, double y, double x) {
    y = clipped(y, p.h), x = clipped(x, p.w);
    const int64_t y0 = static_cast<int64_t>(y), x0 = static_cast<int64_t>(x);
    const int64_t y1 = y0 + 1 < p.h ? y0 + 1 : p.h - 1, x1 = x0 + 1 < p.w ? x0 + 1 : p.w - 1;
    const double down = y - static_cast<double>(y0), right = x - static_cast<double>(x0);
    const double above = p.map[y0 * p.w + x0] * (1.0 - right) + p.map[y0 * p.w + x1] * right;
    const double below = p.map[y1 * p.w + x0] * (1.0 - right) + p.map[y1 * p.w + x1] * right;
    return above * (1.0 - down) + below * down;
}

// Whether a pixel is not less than its neighbours across the boundary.
bool is_ridge(const SuppressParams& p, const double* smooth, int64_t y, int64_t x) {
    const auto s_x = [&](int64_t row, int64_t column) {
        return difference([&](int64_t i) { return smooth[row * p.w + i]; }, column, p.w);
    };
    const auto s_y = [&](int64_t row) { return difference([&](int64_t i) { return smooth[i * p.w + x]; }, row, p.h); };
    const double s_xx = difference([&](int64_t i) { return s_x(y, i); }, x, p.w);
    const double s_xy = difference([&](int64_t i) { return s_x(i, x); }, y, p.h);
    const double s_yy = difference(s_y, y, p.h);
    const double across = s_xx + 1e-5, along = s_xy < 0.0 ? s_yy : s_xy > 0.0 ? -s_yy : 0.0;
    const double length = std::sqrt(across * across + along * along);
    const double step_x = length > 0.0 ? across / length : 1.0, step_y = length > 0.0 ? along / length : 0.0;
    const double value = p.generosity * p.map[y * p.w + x], at_y = static_cast<double>(y), at_x = static_cast<double>(x);
    return value >= bilinear(p, at_y - step_y, at_x - step_x) && value >= bilinear(p, at_y + step_y, at_x + step_x);
}

double fading(int64_t i, int64_t n, int64_t margin) {
    const int64_t inwards = i < n - 1 - i ? i : n - 1 - i;
    return inwards < margin ? static_cast<double>(inwards) / static_cast<double>(margin) : 1.0;
}

void suppress(const SuppressParams& p, DType, int threads) {
    const int64_t w = p.w;
    double *sums = doubles(Slot::maps, (2 * p.h + kRadius) * w), *smooth = sums + (p.h + kRadius) * w;
    parallel_for(p.h + kRadius, threads, [&](int64_t row) {
        const double* from[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) from[i] = p.map + mirrored(row + i - kRadius, p.h) * w;
        for (int64_t x = 0; x < w; ++x) sums[row * w + x] = from[0][x] + from[1][x] + from[2][x] + from[3][x] + from[4][x];
    });
    constexpr double divisor = kWidth * kWidth;
    parallel_for(p.h, threads, [&](int64_t y) {
        double *line = doubles(Slot::other, 2 * (w + 2 * kRadius)), *once = line + w + 2 * kRadius;
        running_sum(line + kRadius, sums + y * w, w, w, divisor);
        for (int64_t i = 0; i < kRadius; ++i) {
            line[kRadius - 1 - i] = line[kRadius + mirrored(-1 - i, w)];
            line[kRadius + w + i] = line[kRadius + mirrored(w + i, w)];
        }
        running_sum(once, line, 1, w + kRadius, 1.0);
        running_sum(smooth + y * w, once, 1, w, divisor);
    });
    parallel_for(p.h, threads, [&](int64_t y) {
        for (int64_t x = 0; x < w; ++x) {
            const double value = p.map[y * w + x];
            const bool kept = value != 0.0 && is_ridge(p, smooth, y, x);
            p.out[y * w + x] = kept ? value * fading(y, p.h, p.margin) * fading(x, w, p.margin) : 0.0;
        }
    });
}

}  // namespace

DMTL_KERNELS(suppression, cpu_kernel<SuppressParams, &suppress>("suppress", kSuppressFields))

}  // namespace dmtl::DMTL_ISA
