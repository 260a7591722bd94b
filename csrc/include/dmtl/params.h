// What every kernel's entry point takes besides its own plain parameter struct. Structs hold pointers, sizes and strides only;
// Python owns tensors, shapes and checks.
#pragma once

#include <cstdint>

namespace dmtl {

// Storage type of an op's data.
enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

}  // namespace dmtl
