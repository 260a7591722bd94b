// x_{t-1} = c1 x0_hat + c2 x_t + sigma eps, and its backward. Compiled once per instruction set (DMTL_ISA).
#include "dmtl/cpu_ops.h"
#include "dmtl/noising_cpu.h"

#include <type_traits>

namespace dmtl::DMTL_ISA {

void posterior_step(const NoisingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { noising<std::remove_pointer_t<decltype(storage)>, true>(params, threads); });
}

void posterior_step_backward(const ScalingParams& params, DType dtype, int threads) {
    with_storage(dtype, [&](auto* storage) { scaling<std::remove_pointer_t<decltype(storage)>>(params, threads); });
}

}  // namespace dmtl::DMTL_ISA
