// Philox words of many consecutive counters at once on x86. Compilers do not recognise the 32 x 32 -> 64 bit multiplication of
// the generator, so it is written with intrinsics. Even and odd lanes of a vector are kept separately as 64-bit lanes whose
// upper halves are never read, and one product gives both the high and the low word.
#pragma once

#include "dmtl/philox.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dmtl {
namespace {

#if defined(__AVX512F__)
struct Vec {
    static constexpr int lanes = 16;
    __m512i v;
    static DMTL_INLINE Vec all(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
    static DMTL_INLINE Vec count(uint32_t first, uint32_t stride) {
        const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        return {_mm512_add_epi32(all(first).v, _mm512_mullo_epi32(iota, all(stride).v))};
    }
    DMTL_INLINE Vec times(Vec m) const { return {_mm512_mul_epu32(v, m.v)}; }
    DMTL_INLINE Vec high() const { return {_mm512_srli_epi64(v, 32)}; }
    static DMTL_INLINE Vec xor3(Vec a, Vec b, Vec c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)}; }
    static DMTL_INLINE void store(uint32_t* out, Vec even, Vec odd) {
        _mm512_storeu_si512(out, _mm512_mask_mov_epi32(even.v, 0xAAAA, _mm512_slli_epi64(odd.v, 32)));
    }
};
#elif defined(__AVX2__)
struct Vec {
    static constexpr int lanes = 8;
    __m256i v;
    static DMTL_INLINE Vec all(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
    static DMTL_INLINE Vec count(uint32_t first, uint32_t stride) {
        const __m256i iota = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        return {_mm256_add_epi32(all(first).v, _mm256_mullo_epi32(iota, all(stride).v))};
    }
    DMTL_INLINE Vec times(Vec m) const { return {_mm256_mul_epu32(v, m.v)}; }
    DMTL_INLINE Vec high() const { return {_mm256_srli_epi64(v, 32)}; }
    static DMTL_INLINE Vec xor3(Vec a, Vec b, Vec c) { return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)}; }
    static DMTL_INLINE void store(uint32_t* out, Vec even, Vec odd) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xAA));
    }
};
#endif

// Computes the words of the n blocks first, first + stride, ...: out[word][block].
template <int64_t n>
DMTL_INLINE void philox_lanes(uint32_t first, uint32_t stride, NoiseKey key, uint32_t (&out)[4][n]) {
#if defined(__AVX512F__) || defined(__AVX2__)
    static_assert(n % Vec::lanes == 0, "whole vectors");
    constexpr int vectors = 2 * static_cast<int>(n / Vec::lanes);  // even and odd lanes
    Vec c0[vectors], c1[vectors], c2[vectors], c3[vectors];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i += 2) {
        c0[i] = Vec::count(first + static_cast<uint32_t>(i / 2 * Vec::lanes) * stride, stride);
        c0[i + 1] = c0[i].high();
        c1[i] = c1[i + 1] = Vec::all(key.c1);
        c2[i] = c2[i + 1] = Vec::all(key.c2);
        c3[i] = c3[i + 1] = Vec::all(key.c3);
    }
    const Vec m0 = Vec::all(0xD2511F53u), m1 = Vec::all(0xCD9E8D57u);
    uint32_t k0 = key.k0, k1 = key.k1;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const Vec key0 = Vec::all(k0), key1 = Vec::all(k1);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; ++i) {
            const Vec p0 = c0[i].times(m0), p1 = c2[i].times(m1);
            c0[i] = Vec::xor3(p1.high(), c1[i], key0);
            c1[i] = p1;
            c2[i] = Vec::xor3(p0.high(), c3[i], key1);
            c3[i] = p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i += 2) {
        const int at = i / 2 * Vec::lanes;
        Vec::store(&out[0][at], c0[i], c0[i + 1]);
        Vec::store(&out[1][at], c1[i], c1[i + 1]);
        Vec::store(&out[2][at], c2[i], c2[i + 1]);
        Vec::store(&out[3][at], c3[i], c3[i + 1]);
    }
#else
    for (int64_t l = 0; l < n; ++l) {
        const Words w = philox(first + static_cast<uint32_t>(l) * stride, key);
        out[0][l] = w.w0;
        out[1][l] = w.w1;
        out[2][l] = w.w2;
        out[3][l] = w.w3;
    }
#endif
}

}  // namespace
}  // namespace dmtl
