// x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, and its backward. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/noising_cpu.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {

static void q_sample(const NoisingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { noising<std::remove_pointer_t<decltype(storage)>, false>(params, threads); });
}

static void q_sample_backward(const ScalingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { scaling<std::remove_pointer_t<decltype(storage)>>(params, threads); });
}

DMTL_KERNELS(q_sample, cpu_kernel<NoisingParams, &q_sample>("q_sample", kNoisingFields),
             cpu_kernel<ScalingParams, &q_sample_backward>("q_sample_backward", kScalingFields))

}  // namespace dmtl::DMTL_ISA
