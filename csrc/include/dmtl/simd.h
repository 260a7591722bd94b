// Sixteen floats at a time, on every instruction set: one AVX-512 register, two AVX2 registers or sixteen plain numbers. A
// kernel written with F32x16 does the same arithmetic in the same order everywhere, so all instruction sets give the same bits.
// There are no implicit fused multiply-adds, only explicit ones by `fma`. max(a, b) and min(a, b) are b if either is NaN.
// Processors with AVX-512 BF16 also have `pairs` and `fma_pairs` for two bfloat16 in the bits of each float.
//
//     F32x16 sum = F32x16::zero();
//     for (k...) sum = fma(F32x16::all(a[k]), F32x16::load(b + 16 * k), sum);
//     sum.store(out);            // sum.store(out, n) writes only the first n < 16
//     sum.stream(out);           // writes 64 aligned bytes past the caches; other threads see them after `finish_streams()`
#pragma once

#include "dmtl/scalar.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace dmtl {
namespace {

constexpr int64_t kLanes16 = 16;

// The number of groups of sixteen that hold n numbers, and their size.
constexpr int64_t lane_groups(int64_t n) { return (n + kLanes16 - 1) / kLanes16; }
constexpr int64_t padded_to_lanes(int64_t n) { return lane_groups(n) * kLanes16; }

// The number of sums of a filter that stay in registers.
#if defined(__AVX512F__)
constexpr int kSumsAtOnce = 8;  // eight registers of 32
#else
constexpr int kSumsAtOnce = 4;  // ... or of 16 with AVX2, two for each sum
#endif

#if defined(__AVX512F__)
struct F32x16 {
    __m512 v;
    static constexpr __mmask16 all_lanes = 0xFFFF;  // with a mask, GCC 12 does not warn about its header
    static DMTL_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
    static DMTL_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
    static DMTL_INLINE F32x16 all(float x) { return {_mm512_set1_ps(x)}; }
    static DMTL_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static DMTL_INLINE F32x16 load(const float* p, int64_t n) {
        return n == kLanes16 ? load(p) : F32x16{_mm512_maskz_loadu_ps(first(n), p)};
    }
    DMTL_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
    DMTL_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
    DMTL_INLINE void store(float* p, int64_t n) const {
        if (n == kLanes16) return store(p);  // masked stores are slow on some processors
        _mm512_mask_storeu_ps(p, first(n), v);
    }
    friend DMTL_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend DMTL_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend DMTL_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend DMTL_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
#if defined(__AVX512BF16__)
    // low and high numbers, rounded to bfloat16; subnormal numbers become zeros
    static DMTL_INLINE F32x16 pairs(F32x16 low, F32x16 high) {
        const auto widened = [](F32x16 x) {
            return _mm512_maskz_cvtepu16_epi32(all_lanes, (__m256i)_mm512_cvtneps_pbh(x.v));
        };
        return {_mm512_castsi512_ps(_mm512_or_si512(widened(low), _mm512_maskz_slli_epi32(all_lanes, widened(high), 16)))};
    }
    // fma(low a, low b, fma(high a, high b, c)), subnormal numbers as zeros
    friend DMTL_INLINE F32x16 fma_pairs(F32x16 a, F32x16 b, F32x16 c) {
        return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
    }
#endif
    friend DMTL_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_maskz_max_ps(all_lanes, a.v, b.v)}; }
    friend DMTL_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_maskz_min_ps(all_lanes, a.v, b.v)}; }
    // value, but 0 where gate <= 0: ReLU's gradient
    friend DMTL_INLINE F32x16 gated(F32x16 value, F32x16 gate) {
        return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(gate.v, _mm512_setzero_ps(), _CMP_NLE_UQ), value.v)};
    }
};
#elif defined(__AVX2__) && defined(__FMA__)
struct F32x16 {
    __m256 lo, hi;
    static DMTL_INLINE __m256i first(int64_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static DMTL_INLINE F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static DMTL_INLINE F32x16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static DMTL_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static DMTL_INLINE F32x16 load(const float* p, int64_t n) {
        if (n == kLanes16) return load(p);
        return {_mm256_maskload_ps(p, first(n)), _mm256_maskload_ps(p + 8, first(n - 8))};
    }
    DMTL_INLINE void store(float* p) const { _mm256_storeu_ps(p, lo), _mm256_storeu_ps(p + 8, hi); }
    DMTL_INLINE void stream(float* p) const { _mm256_stream_ps(p, lo), _mm256_stream_ps(p + 8, hi); }
    DMTL_INLINE void store(float* p, int64_t n) const {
        if (n == kLanes16) return store(p);
        _mm256_maskstore_ps(p, first(n), lo), _mm256_maskstore_ps(p + 8, first(n - 8), hi);
    }
    friend DMTL_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
    friend DMTL_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
    friend DMTL_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
    friend DMTL_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
        return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
    }
    friend DMTL_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
    friend DMTL_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
    friend DMTL_INLINE F32x16 gated(F32x16 value, F32x16 gate) {
        const __m256 zero = _mm256_setzero_ps();
        return {_mm256_and_ps(_mm256_cmp_ps(gate.lo, zero, _CMP_NLE_UQ), value.lo),
                _mm256_and_ps(_mm256_cmp_ps(gate.hi, zero, _CMP_NLE_UQ), value.hi)};
    }
};
#else
struct F32x16 {
    float v[kLanes16];
    template <class F>
    static DMTL_INLINE F32x16 each(F lane) {
        F32x16 r;
        for (int64_t i = 0; i < kLanes16; ++i) r.v[i] = lane(i);
        return r;
    }
    static DMTL_INLINE F32x16 zero() { return all(0.0f); }
    static DMTL_INLINE F32x16 all(float x) { return each([&](int64_t) { return x; }); }
    static DMTL_INLINE F32x16 load(const float* p) { return each([&](int64_t i) { return p[i]; }); }
    static DMTL_INLINE F32x16 load(const float* p, int64_t n) { return each([&](int64_t i) { return i < n ? p[i] : 0.0f; }); }
    DMTL_INLINE void store(float* p) const { store(p, kLanes16); }
    DMTL_INLINE void stream(float* p) const { store(p); }
    DMTL_INLINE void store(float* p, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) p[i] = v[i];
    }
    friend DMTL_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return each([&](int64_t i) { return a.v[i] + b.v[i]; }); }
    friend DMTL_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return each([&](int64_t i) { return a.v[i] - b.v[i]; }); }
    friend DMTL_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return each([&](int64_t i) { return a.v[i] * b.v[i]; }); }
    friend DMTL_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
        return each([&](int64_t i) { return fma32(a.v[i], b.v[i], c.v[i]); });
    }
    friend DMTL_INLINE F32x16 max(F32x16 a, F32x16 b) {
        return each([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend DMTL_INLINE F32x16 min(F32x16 a, F32x16 b) {
        return each([&](int64_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend DMTL_INLINE F32x16 gated(F32x16 value, F32x16 gate) {
        return each([&](int64_t i) { return gate.v[i] <= 0.0f ? 0.0f : value.v[i]; });
    }
};
#endif

// The sum of the lanes, and the largest: each lane of the first half with its partner in the second half, until one is left.
#if defined(__AVX2__) && defined(__FMA__)
template <class Combine8, class Combine4>
DMTL_INLINE float reduced(F32x16 x, const Combine8& combine8, const Combine4& combine4) {
#if defined(__AVX512F__)
    const __m256 lo = _mm512_maskz_extractf32x8_ps(0xFF, x.v, 0), hi = _mm512_maskz_extractf32x8_ps(0xFF, x.v, 1);
#else
    const __m256 lo = x.lo, hi = x.hi;
#endif
    const __m256 eight = combine8(lo, hi);
    const __m128 four = combine4(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = combine4(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(combine4(two, _mm_movehdup_ps(two)));
}
DMTL_INLINE float sum_of(F32x16 x) {
    const auto four = [](__m128 a, __m128 b) { return _mm_add_ps(a, b); };
    return reduced(x, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); }, four);
}
DMTL_INLINE float largest_of(F32x16 x) {
    const auto four = [](__m128 a, __m128 b) { return _mm_max_ps(a, b); };
    return reduced(x, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }, four);
}
#else
template <class Combine>
DMTL_INLINE float reduced(F32x16 x, const Combine& combine) {
    for (int64_t step = kLanes16 / 2; step > 0; step /= 2)
        for (int64_t i = 0; i < step; ++i) x.v[i] = combine(x.v[i], x.v[i + step]);
    return x.v[0];
}
DMTL_INLINE float sum_of(F32x16 x) {
    return reduced(x, [](float a, float b) { return a + b; });
}
DMTL_INLINE float largest_of(F32x16 x) {
    return reduced(x, [](float a, float b) { return a > b ? a : b; });
}
#endif

DMTL_INLINE void finish_streams() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

}  // namespace
}  // namespace dmtl
