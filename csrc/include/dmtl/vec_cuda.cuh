// Loads and stores of 16 bytes.
#pragma once

#include "dmtl/scalar.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace dmtl {
namespace {

template <class T>
struct alignas(16) Vec {
    static constexpr int kSize = 16 / sizeof(T);
    T value[kSize];
};

template <class T>
__device__ __forceinline__ Vec<T> load_vec(const void* base, int64_t element) {
    return *reinterpret_cast<const Vec<T>*>(static_cast<const T*>(base) + element);
}

template <class T>
__device__ __forceinline__ void store_vec(void* base, int64_t element, const Vec<T>& x) {
    uint4 bits;
    memcpy(&bits, &x, sizeof bits);
    __stcg(reinterpret_cast<uint4*>(static_cast<T*>(base) + element), bits);  // an assignment becomes stores of 4 bytes
}

}  // namespace
}  // namespace dmtl
