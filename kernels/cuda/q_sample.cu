// x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, and its backward.
#include "dmtl/noising_cuda.cuh"

#include <type_traits>

namespace dmtl::cuda {

static cudaError_t q_sample(const NoisingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return noising<std::remove_pointer_t<decltype(storage)>, false>(params, stream);
    });
}

static cudaError_t q_sample_backward(const ScalingParams& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) {
        return scaling<std::remove_pointer_t<decltype(storage)>>(params, stream);
    });
}

DMTL_KERNELS(q_sample, cuda_kernel<NoisingParams, &q_sample>("q_sample", kNoisingFields),
             cuda_kernel<ScalingParams, &q_sample_backward>("q_sample_backward", kScalingFields))

}  // namespace dmtl::cuda
