// The CUDA kernels' launchers. They check nothing but the launch itself and never synchronise.
#pragma once

#include "dmtl/params.h"

#include <cuda_runtime_api.h>

namespace dmtl::cuda {

cudaError_t q_sample(const NoisingParams& params, DType dtype, cudaStream_t stream);
cudaError_t q_sample_backward(const ScalingParams& params, DType dtype, cudaStream_t stream);
cudaError_t posterior_step(const NoisingParams& params, DType dtype, cudaStream_t stream);
cudaError_t posterior_step_backward(const ScalingParams& params, DType dtype, cudaStream_t stream);

}  // namespace dmtl::cuda
