// dmtl._core: Python's door to the CPU kernels. Knows numbers and pointers, not torch.
#include "dmtl/cpu_ops.h"
#include "dmtl/philox.h"
#include "params_binding.h"

#include <string>
#include <vector>

namespace py = pybind11;

namespace {

enum class Isa { baseline, avx2, avx512 };

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

// What this build holds and this processor runs, best last.
std::vector<Isa> usable() {
    std::vector<Isa> found{Isa::baseline};
#if defined(DMTL_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        found.push_back(Isa::avx512);
#endif
    return found;
}

Isa chosen = usable().back();

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (Isa isa : usable()) names.emplace_back(name_of(isa));
    return names;
}

void use_isa(const std::string& name) {
    for (Isa isa : usable())
        if (name == name_of(isa)) {
            chosen = isa;
            return;
        }
    throw py::value_error("use_isa: name must be one of isas(), got " + name);
}

std::vector<uint32_t> philox_words(std::array<int64_t, 3> seed_task_sample, int32_t step, int64_t count) {
    const dmtl::NoiseKey key = dmtl::noise_key(seed_task_sample.data(), step);
    std::vector<uint32_t> words(static_cast<size_t>(count));
    for (size_t i = 0; i < words.size(); ++i) {
        const dmtl::Words w = dmtl::philox(static_cast<uint32_t>(i / 4), key);
        const uint32_t all[4] = {w.w0, w.w1, w.w2, w.w3};
        words[i] = all[i % 4];
    }
    return words;
}

template <class Params>
using Kernel = void (*)(const Params&, dmtl::DType, int);

template <class Params>
void call(Kernel<Params> baseline, Kernel<Params> avx2, Kernel<Params> avx512, const Params& params, int dtype, int threads) {
    const Kernel<Params> kernel = chosen == Isa::avx512 ? avx512 : chosen == Isa::avx2 ? avx2 : baseline;
    const py::gil_scoped_release release;
    kernel(params, static_cast<dmtl::DType>(dtype), threads);
}

#if defined(DMTL_X86)
#define DMTL_CALL(op, ...) call(dmtl::baseline::op, dmtl::avx2::op, dmtl::avx512::op, __VA_ARGS__)
#else
#define DMTL_CALL(op, ...) call(dmtl::baseline::op, dmtl::baseline::op, dmtl::baseline::op, __VA_ARGS__)
#endif

#define DMTL_BIND(op, Params)                                                                             \
    m.def(#op, [](const Params& params, int dtype, int threads) { DMTL_CALL(op, params, dtype, threads); }, \
          py::arg("params"), py::arg("dtype"), py::arg("threads"))

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "CPU kernels of dmtl (called through dmtl.kernels.cpu)";
    m.attr("compiler") = DMTL_COMPILER;
#if defined(_OPENMP)
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("isas", &isas, "Instruction sets that this build holds and this processor runs, best last.");
    m.def("isa", [] { return std::string(name_of(chosen)); }, "The instruction set in use.");
    m.def("use_isa", &use_isa, "Choose the instruction set (for tests).");

    m.def("philox_words", &philox_words, py::arg("seed_task_sample"), py::arg("step"), py::arg("count"),
          "Words behind the first elements of a row (for tests).");

    dmtl::bind_noising_params(m);
    dmtl::bind_scaling_params(m);
    DMTL_BIND(q_sample, dmtl::NoisingParams);
    DMTL_BIND(q_sample_backward, dmtl::ScalingParams);
    DMTL_BIND(posterior_step, dmtl::NoisingParams);
    DMTL_BIND(posterior_step_backward, dmtl::ScalingParams);
}
