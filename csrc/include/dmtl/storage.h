// Converts the name of a storage type at run time to the type itself.
#pragma once

#include "dmtl/params.h"
#include "dmtl/scalar.h"

#include <type_traits>

namespace dmtl {
namespace {

// Calls body with a null pointer of the storage type that dtype names, and returns what it returns.
template <class Body>
auto with_storage(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::bf16: return body(static_cast<bf16*>(nullptr));
        case DType::f16: return body(static_cast<fp16*>(nullptr));
        default: return body(static_cast<float*>(nullptr));
    }
}

}  // namespace
}  // namespace dmtl

// Defines the kernel `name`, which runs body<T>(params, threads) for the storage type T that dtype names.
#define DMTL_STORAGE_KERNEL(name, Params, body)                                                           \
    static void name(const Params& params, ::dmtl::DType dtype, int threads) {                            \
        ::dmtl::with_storage(                                                                             \
            dtype, [&](auto* type) { body<std::remove_pointer_t<decltype(type)>>(params, threads); });    \
    }
