// The CPU kernels, as compiled once for every instruction set. DMTL_CPU_OP(name, Params) declares one op in all of them.
#pragma once

#include "dmtl/params.h"

#define DMTL_CPU_OP(name, Params)                                                      \
    namespace baseline { void name(const Params& params, DType dtype, int threads); } \
    namespace avx2 { void name(const Params& params, DType dtype, int threads); }     \
    namespace avx512 { void name(const Params& params, DType dtype, int threads); }

namespace dmtl {

DMTL_CPU_OP(q_sample, NoisingParams)
DMTL_CPU_OP(q_sample_backward, ScalingParams)
DMTL_CPU_OP(posterior_step, NoisingParams)
DMTL_CPU_OP(posterior_step_backward, ScalingParams)

}  // namespace dmtl
