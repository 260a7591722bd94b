// Winograd's minimal filtering F(4x4, 3x3) computes 4x4 outputs of a 3x3 convolution from a 6x6 patch with 36 products instead
// of 144.
//     output = A^T ((G weight G^T) . (B^T patch B)) A,   . elementwise, summed over the input channels
// The interpolation points are 0, +-a, +-b and infinity with a = sqrt(1/2), b = sqrt(2). They are symmetric, so that pairs
// share their sums, and close to 1, so that cancellation costs little precision (relative error about 1.5e-6; 3e-6 with the
// textbook's 0, +-1, +-2). Because a^2 b^2 = 1, most constants are powers of two. F(6x6, 3x3) would need 16 % fewer products at
// 64x64 pixels, but 1.8 times the memory for weights, and its error is 4.3e-6. Legend: Lanes has the same element of many
// channels; a transform reads six (or three) of them, `stride` entries apart.
#pragma once

#include "dmtl/simd.h"

namespace dmtl {
namespace {

constexpr int kPatch = 6, kOut = 4, kTaps = 3, kFrequencies = kPatch * kPatch;
constexpr double kPointA = 0.70710678118654752440, kPointB = 1.41421356237309504880;

// B^T d for six input values.
template <class Lanes>
DMTL_INLINE void transform_input(const Lanes* d, int stride, Lanes* out, int out_stride) {
    const Lanes d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
    const Lanes a = Lanes::all(static_cast<float>(kPointA)), b = Lanes::all(static_cast<float>(kPointB));
    const Lanes minus_a = Lanes::all(static_cast<float>(-kPointA)), minus_b = Lanes::all(static_cast<float>(-kPointB));
    const Lanes two = Lanes::all(-2.0f), half = Lanes::all(-0.5f), sum = Lanes::all(-2.5f);
    const Lanes even_a = fma(two, d2, d4), odd_a = fma(two, d1, d3);
    const Lanes even_b = fma(half, d2, d4), odd_b = fma(half, d1, d3);
    out[0] = fma(sum, d2, d0) + d4;
    out[out_stride] = fma(a, odd_a, even_a);
    out[2 * out_stride] = fma(minus_a, odd_a, even_a);
    out[3 * out_stride] = fma(b, odd_b, even_b);
    out[4 * out_stride] = fma(minus_b, odd_b, even_b);
    out[5 * out_stride] = fma(sum, d3, d1) + d5;
}

// A^T m for six products.
template <class Lanes>
DMTL_INLINE void transform_output(const Lanes* m, int stride, Lanes* out, int out_stride) {
    const Lanes m0 = m[0], m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride], m4 = m[4 * stride], m5 = m[5 * stride];
    const auto all = [](double x) { return Lanes::all(static_cast<float>(x)); };
    const Lanes sum_a = m1 + m2, odd_a = m1 - m2, sum_b = m3 + m4, odd_b = m3 - m4;
    out[0] = (m0 + sum_a) + sum_b;
    out[out_stride] = fma(all(kPointA), odd_a, all(kPointB) * odd_b);
    out[2 * out_stride] = fma(all(0.5), sum_a, all(2.0) * sum_b);
    out[3 * out_stride] = fma(all(0.5 * kPointA), odd_a, all(2.0 * kPointB) * odd_b) + m5;
}

// Eight doubles at a time (the compiler splits them if registers are shorter).
typedef double F64x8 __attribute__((vector_size(64)));
typedef float F32x8 __attribute__((vector_size(32)));

DMTL_INLINE void load_widened(const float* p, F64x8& wide) {
    F32x8 narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    wide = __builtin_convertvector(narrow, F64x8);
}
DMTL_INLINE void store_narrowed(float* p, const F64x8& wide) {
    const F32x8 narrow = __builtin_convertvector(wide, F32x8);
    std::memcpy(p, &narrow, sizeof narrow);
}

// G g for three weights.
template <class Lanes>
DMTL_INLINE void transform_weight(const Lanes* g, int stride, Lanes* out, int out_stride) {
    const auto all = [](double x) { return Lanes::all(static_cast<float>(x)); };
    const Lanes g0 = g[0], g1 = g[stride], g2 = g[2 * stride];
    const Lanes even_a = fma(all(0.5), g2, g0) * all(-2.0 / 3.0), even_b = fma(all(2.0), g2, g0) * all(1.0 / 6.0);
    out[0] = g0;
    out[out_stride] = fma(all(kPointA * (-2.0 / 3.0)), g1, even_a);
    out[2 * out_stride] = fma(all(kPointA * (2.0 / 3.0)), g1, even_a);
    out[3 * out_stride] = fma(all(kPointB / 6.0), g1, even_b);
    out[4 * out_stride] = fma(all(kPointB / -6.0), g1, even_b);
    out[5 * out_stride] = g2;
}

// A y for four gradients of outputs, and G^T u for six sums: the counterparts of A^T and G in the weight gradient
//     d weight = G^T (sum over tiles of (B^T patch B) . (A gradient A^T)) G
template <class Lanes>
DMTL_INLINE void transform_gradient(const Lanes* y, int stride, Lanes* out, int out_stride) {
    const Lanes y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
    const auto all = [](double x) { return Lanes::all(static_cast<float>(x)); };
    const Lanes even_a = fma(all(0.5), y2, y0), odd_a = fma(all(0.5), y3, y1);
    const Lanes even_b = fma(all(2.0), y2, y0), odd_b = fma(all(2.0), y3, y1);
    out[0] = y0;
    out[out_stride] = fma(all(kPointA), odd_a, even_a);
    out[2 * out_stride] = fma(all(-kPointA), odd_a, even_a);
    out[3 * out_stride] = fma(all(kPointB), odd_b, even_b);
    out[4 * out_stride] = fma(all(-kPointB), odd_b, even_b);
    out[5 * out_stride] = y3;
}

DMTL_INLINE void transform_sums(const F64x8* u, int stride, F64x8* out, int out_stride) {
    const F64x8 u0 = u[0], u1 = u[stride], u2 = u[2 * stride], u3 = u[3 * stride], u4 = u[4 * stride], u5 = u[5 * stride];
    const F64x8 even_a = (u1 + u2) * (-2.0 / 3.0), odd_a = (u1 - u2) * (kPointA * (-2.0 / 3.0));
    const F64x8 even_b = (u3 + u4) * (1.0 / 6.0), odd_b = (u3 - u4) * (kPointB * (1.0 / 6.0));
    out[0] = u0 + even_a + even_b;
    out[out_stride] = odd_a + odd_b;
    out[2 * out_stride] = 0.5 * even_a + 2.0 * even_b + u5;
}

// Transforms sixteen lanes: a 6x6 patch to 36 frequencies, and 36 products to 4x4 outputs; columns first.
DMTL_INLINE void transform_patch(const F32x16 (&patch)[kFrequencies], F32x16 (&out)[kFrequencies]) {
    F32x16 half[kFrequencies];
    for (int j = 0; j < kPatch; ++j) transform_input(patch + j, kPatch, half + j, kPatch);
    for (int i = 0; i < kPatch; ++i) transform_input(half + kPatch * i, 1, out + kPatch * i, 1);
}

DMTL_INLINE void transform_products(const F32x16 (&products)[kFrequencies], F32x16 (&out)[kOut * kOut]) {
    F32x16 half[kOut * kPatch];
    for (int j = 0; j < kPatch; ++j) transform_output(products + j, kPatch, half + j, kPatch);
    for (int i = 0; i < kOut; ++i) transform_output(half + kPatch * i, 1, out + kOut * i, 1);
}

// Transforms sixteen lanes of 4x4 gradients to 36 frequencies.
DMTL_INLINE void transform_gradients(const F32x16 (&gradient)[kOut * kOut], F32x16 (&out)[kFrequencies]) {
    F32x16 half[kPatch * kOut];
    for (int j = 0; j < kOut; ++j) transform_gradient(gradient + j, kOut, half + j, kOut);
    for (int i = 0; i < kPatch; ++i) transform_gradient(half + kOut * i, 1, out + kPatch * i, 1);
}

// Transforms sixteen lanes of 3x3 weights to 36 frequencies.
DMTL_INLINE void transform_weights(const F32x16 (&weight)[kTaps * kTaps], F32x16 (&out)[kFrequencies]) {
    F32x16 half[kPatch * kTaps];
    for (int j = 0; j < kTaps; ++j) transform_weight(weight + j, kTaps, half + j, kTaps);
    for (int i = 0; i < kPatch; ++i) transform_weight(half + kTaps * i, 1, out + kPatch * i, 1);
}

// Transforms eight lanes of 36 sums back to the gradient of 3x3 weights.
DMTL_INLINE void transform_weight_sums(const float* sums, int64_t stride, float* out, int64_t out_stride) {
    F64x8 u[kFrequencies], half[kTaps * kPatch], g[kTaps * kTaps];
    for (int f = 0; f < kFrequencies; ++f) load_widened(sums + f * stride, u[f]);
    for (int j = 0; j < kPatch; ++j) transform_sums(u + j, kPatch, half + j, kPatch);
    for (int i = 0; i < kTaps; ++i) transform_sums(half + kPatch * i, 1, g + kTaps * i, 1);
    for (int tap = 0; tap < kTaps * kTaps; ++tap) store_narrowed(out + tap * out_stride, g[tap]);
}

}  // namespace
}  // namespace dmtl
