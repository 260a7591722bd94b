// x_{t-1} = c1 x0_hat + c2 x_t + sigma eps, and its backward. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/noising_cpu.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {

static void posterior_step(const NoisingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { noising<std::remove_pointer_t<decltype(storage)>, true>(params, threads); });
}

static void posterior_step_backward(const ScalingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { scaling<std::remove_pointer_t<decltype(storage)>>(params, threads); });
}

DMTL_KERNELS(posterior_step, cpu_kernel<NoisingParams, &posterior_step>("posterior_step", kNoisingFields),
             cpu_kernel<ScalingParams, &posterior_step_backward>("posterior_step_backward", kScalingFields))

}  // namespace dmtl::DMTL_ISA
