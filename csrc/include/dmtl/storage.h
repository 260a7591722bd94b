// From a storage type's name at run time to the type itself.
#pragma once

#include "dmtl/params.h"
#include "dmtl/scalar.h"

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
