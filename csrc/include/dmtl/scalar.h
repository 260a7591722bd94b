// Code for single numbers that host and device share: function qualifiers, fused multiply-add, bits, 16-bit floats.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DMTL_INLINE __host__ __device__ __forceinline__
#else
#define DMTL_INLINE inline __attribute__((always_inline))
#endif

namespace dmtl {
namespace {  // every translation unit keeps its own copies: they are compiled for different instruction sets

DMTL_INLINE float fma32(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    // No hardware fma: the product is exact in double, so only a double rounding (about one in 2^29) can differ.
    return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
#endif
}

DMTL_INLINE uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

DMTL_INLINE float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

// Storage types: load and store convert to and from float, rounding to nearest even.
struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

DMTL_INLINE float load(const float* p) { return *p; }
DMTL_INLINE void store(float* p, float x) { *p = x; }

DMTL_INLINE float load(const bf16* p) { return float_of(static_cast<uint32_t>(p->bits) << 16); }
DMTL_INLINE uint32_t bf16_bits(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded;
}
DMTL_INLINE void store(bf16* p, float x) { p->bits = static_cast<uint16_t>(bf16_bits(x)); }

DMTL_INLINE float load(const fp16* p) {
    const uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(p->bits & 0x7FFFu) << 13;
    // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals; the exponent of inf and nan is then
    // set.
    const uint32_t scaled = bits_of(float_of(magnitude) * 0x1p112f);
    return float_of(sign | (magnitude >= 0x0F800000u ? (magnitude | 0x7F800000u) : scaled));
}
DMTL_INLINE void store(fp16* p, float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    // Normal result: move the bias, and round to nearest even when 13 bits are dropped. Subnormal: an addition does the
    // rounding.
    const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;               // rounds to more than 65504: infinity
    half = magnitude > 0x7F800000u ? 0x7E00u : half;                // nan
    p->bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace
}  // namespace dmtl
