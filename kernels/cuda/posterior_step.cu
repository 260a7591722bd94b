// x_{t-1} = c1 x0_hat + c2 x_t + sigma eps, and its backward.
#include "dmtl/cuda_ops.h"
#include "dmtl/noising_cuda.cuh"

#include <type_traits>

namespace dmtl::cuda {

cudaError_t posterior_step(const NoisingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return noising<std::remove_pointer_t<decltype(storage)>, true>(params, stream);
    });
}

cudaError_t posterior_step_backward(const ScalingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return scaling<std::remove_pointer_t<decltype(storage)>>(params, stream);
    });
}

}  // namespace dmtl::cuda
