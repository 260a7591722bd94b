// Kernel tables of the CUDA files. An entry point only checks the launch itself, and never synchronises.
#pragma once

#include "dmtl/kernel_table.h"

#include <cuda_runtime_api.h>

namespace dmtl {

using CudaKernel = Kernel<cudaError_t, cudaStream_t>;
using CudaKernelTable = KernelTable<cudaError_t, cudaStream_t>;

namespace {

template <class Params, cudaError_t (*kernel)(const Params&, DType, cudaStream_t), size_t n>
constexpr CudaKernel cuda_kernel(const char* name, const Field (&fields)[n]) {
    static_assert(std::is_trivial_v<Params> && std::is_standard_layout_v<Params>);
    return {name, fields, n, sizeof(Params), &run_erased<Params, cudaError_t, cudaStream_t, kernel>};
}

}  // namespace
}  // namespace dmtl
