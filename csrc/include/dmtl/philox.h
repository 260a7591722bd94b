// The noise of dmtl for one block of four elements. The docstring of dmtl/ops/philox.py defines it. CPU (scalar, AVX2, AVX-512)
// and CUDA do the same operations in the same order.
#pragma once

#include "dmtl/scalar.h"

#include <cmath>

namespace dmtl {
namespace {

// The parts of key and counter that come from one row of key_B3 and from the step.
struct NoiseKey {
    uint32_t k0, k1;      // seed
    uint32_t c1, c2, c3;  // sample low, task, step | sample high << 16
};

DMTL_INLINE NoiseKey noise_key(const int64_t* seed_task_sample, int32_t step) {
    const uint64_t seed = static_cast<uint64_t>(seed_task_sample[0]);
    const uint64_t task = static_cast<uint64_t>(seed_task_sample[1]);
    const uint64_t sample = static_cast<uint64_t>(seed_task_sample[2]);
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(sample),
            static_cast<uint32_t>(task),
            static_cast<uint32_t>(step) | static_cast<uint32_t>((sample >> 32) & 0xFFFFu) << 16};
}

struct Words {
    uint32_t w0, w1, w2, w3;
};

DMTL_INLINE Words philox(uint32_t block, NoiseKey key) {
    uint32_t c0 = block, c1 = key.c1, c2 = key.c2, c3 = key.c3, k0 = key.k0, k1 = key.k1;
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
        const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// -2 ln u for a normal float u in (0, 1]. ln(1 + f) = f - f^2 / 2 + f^3 P(f) on [sqrt(1/2), sqrt(2)), P a minimax fit.
DMTL_INLINE float minus_two_log(float u) {
    const uint32_t bits = bits_of(u) - 0x3F3504F3u;  // 0x3F3504F3: sqrt(1/2)
    const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
    const float f = float_of((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = -0.07634497433900833f;
    p = fma32(p, f, 0.1276157796382904f);
    p = fma32(p, f, -0.13160182535648346f);
    p = fma32(p, f, 0.14201757311820984f);
    p = fma32(p, f, -0.16623356938362122f);
    p = fma32(p, f, 0.20001226663589478f);
    p = fma32(p, f, -0.2500081956386566f);
    p = fma32(p, f, 0.3333333134651184f);
    const float square = f * f;
    float low = fma32(exponent, -0.00021219444170128554f, (f * square) * p);  // ln 2 = 0.693359375 - 2.12194440e-4
    low = fma32(-0.5f, square, low);
    return -2.0f * fma32(exponent, 0.693359375f, f + low);
}

// sqrt(-2 ln u) times cosine and sine of an angle, from one pair of words.
DMTL_INLINE void box_muller(uint32_t radius_word, uint32_t angle_word, float* n0, float* n1) {
    const float u = static_cast<float>(radius_word) * 0x1p-32f + 0x1p-33f;
#if defined(__CUDA_ARCH__)
    const float r = __fsqrt_rn(minus_two_log(u));
#else
    const float r = __builtin_sqrtf(minus_two_log(u));
#endif
    const uint32_t shifted = angle_word + 0x20000000u;
    const uint32_t quadrant = shifted >> 30;
    const int32_t rest = static_cast<int32_t>(shifted & 0x3FFFFFFFu) - 0x20000000;
    const float x = static_cast<float>(rest) * 0x1p-32f;  // turns, |x| <= 1/8
    const float z = x * x;
    float s = fma32(-75.45339965820312f, z, 81.59394073486328f);
    s = fma32(s, z, -41.3416748046875f);
    s = fma32(s, z, -1.7484555314695172e-07f);  // 2 pi = 6.2831854820251465 - 1.7484556e-7
    s = fma32(x, 6.2831854820251465f, x * s);
    float c = fma32(59.24596405029297f, z, -85.44374084472656f);
    c = fma32(c, z, 64.93932342529297f);
    c = fma32(c, z, -19.739208221435547f);
    c = fma32(c, z, 1.0f);
    const bool swap = (quadrant & 1u) != 0;
    const uint32_t cos_bits = bits_of(swap ? s : c) ^ (((quadrant + 1u) & 2u) << 30);
    const uint32_t sin_bits = bits_of(swap ? c : s) ^ ((quadrant & 2u) << 30);
    *n0 = r * float_of(cos_bits);
    *n1 = r * float_of(sin_bits);
}

// Draws the normals of elements 4 block .. 4 block + 3.
DMTL_INLINE void normals(uint32_t block, NoiseKey key, float* n0, float* n1, float* n2, float* n3) {
    const Words w = philox(block, key);
    box_muller(w.w0, w.w1, n0, n1);
    box_muller(w.w2, w.w3, n2, n3);
}

}  // namespace
}  // namespace dmtl
