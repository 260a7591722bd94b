// x_{t-1} = c1 x0_hat + c2 x_t + sigma eps, and its backward.
#include "dmtl/noising_cuda.cuh"

#include <type_traits>

namespace dmtl::cuda {

static cudaError_t posterior_step(const NoisingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return noising<std::remove_pointer_t<decltype(storage)>, true>(params, stream);
    });
}

static cudaError_t posterior_step_backward(const ScalingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return scaling<std::remove_pointer_t<decltype(storage)>>(params, stream);
    });
}

DMTL_KERNELS(posterior_step, cuda_kernel<NoisingParams, &posterior_step>("posterior_step", kNoisingFields),
             cuda_kernel<ScalingParams, &posterior_step_backward>("posterior_step_backward", kScalingFields))

}  // namespace dmtl::cuda
