// The arguments of a kernel's entry point, besides its parameter struct. Structs only hold pointers, sizes and strides; Python
// owns the tensors and checks shapes.
#pragma once

#include <cstdint>

namespace dmtl {

// The storage type of an operator's data.
enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

}  // namespace dmtl
