// dmtl._core_cuda: Python's door to the CUDA kernels. Imports without a GPU (static CUDA runtime), knows no torch.
#include "dmtl/cuda_ops.h"
#include "params_binding.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace {

template <class Params>
void call(cudaError_t (*launch)(const Params&, dmtl::DType, cudaStream_t), const char* op, const Params& params, int dtype,
          uintptr_t stream) {
    const cudaError_t error = launch(params, static_cast<dmtl::DType>(dtype), reinterpret_cast<cudaStream_t>(stream));
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

}  // namespace

#define DMTL_BIND(op, Params)                                                                                  \
    m.def(#op, [](const Params& params, int dtype, uintptr_t stream) { call(&dmtl::cuda::op, #op, params, dtype, stream); }, \
          py::arg("params"), py::arg("dtype"), py::arg("stream"))

PYBIND11_MODULE(_core_cuda, m) {
    m.doc() = "CUDA kernels of dmtl (called through dmtl.kernels.cuda)";
    m.attr("archs") = DMTL_CUDA_ARCHS;
    m.attr("toolkit") = DMTL_CUDA_TOOLKIT;
    dmtl::bind_noising_params(m);
    dmtl::bind_scaling_params(m);
    DMTL_BIND(q_sample, dmtl::NoisingParams);
    DMTL_BIND(q_sample_backward, dmtl::ScalingParams);
    DMTL_BIND(posterior_step, dmtl::NoisingParams);
    DMTL_BIND(posterior_step_backward, dmtl::ScalingParams);
}
