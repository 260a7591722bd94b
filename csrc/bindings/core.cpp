// dmtl._core: the Python bindings of the CPU kernels. They get numbers and pointers and do not use torch.
#include "arguments.h"
#include "dmtl/philox.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

// The kernel tables of all files in csrc/cpu, for every instruction set that they are compiled for.
#define DMTL_FILE(op)                                                          \
    namespace dmtl::baseline { extern const CpuKernelTable op##_kernels; }     \
    namespace dmtl::avx2 { extern const CpuKernelTable op##_kernels; }         \
    namespace dmtl::avx512 { extern const CpuKernelTable op##_kernels; }
#include "cpu_files.inc"
#undef DMTL_FILE
#define DMTL_FILE(op) namespace dmtl::avx512bf16 { extern const CpuKernelTable op##_kernels; }
#include "bf16_files.inc"
#undef DMTL_FILE

namespace py = pybind11;

namespace {

enum class Isa : int { baseline, avx2, avx512, avx512bf16, count };

constexpr int kIsas = static_cast<int>(Isa::count);
constexpr const char* kIsaNames[kIsas] = {"baseline", "avx2", "avx512", "avx512bf16"};
const char* name_of(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

// The instruction sets for which this build has kernels and which this processor supports, best last.
std::vector<Isa> usable() {
    std::vector<Isa> found{Isa::baseline};
#if defined(DMTL_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        found.push_back(Isa::avx512);
#endif
#if defined(DMTL_AVX512BF16)
    if (found.back() == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(Isa::avx512bf16);
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

// The kernels with one name, by instruction set; null if there is no separate one.
struct Variants {
    const dmtl::CpuKernel* by_isa[kIsas] = {};
    const dmtl::CpuKernel& best(Isa isa) const {
        int i = static_cast<int>(isa);
        while (by_isa[i] == nullptr) --i;
        return *by_isa[i];
    }
};

std::unordered_map<std::string, Variants> collect() {
    std::unordered_map<std::string, Variants> found;
    const auto add = [&found](Isa isa, const dmtl::CpuKernelTable& table) {
        for (size_t i = 0; i < table.count; ++i) found[table.kernels[i].name].by_isa[static_cast<int>(isa)] = &table.kernels[i];
    };
#if defined(DMTL_X86)
#define DMTL_FILE(op)                                \
    add(Isa::baseline, dmtl::baseline::op##_kernels); \
    add(Isa::avx2, dmtl::avx2::op##_kernels);         \
    add(Isa::avx512, dmtl::avx512::op##_kernels);
#else
#define DMTL_FILE(op) add(Isa::baseline, dmtl::baseline::op##_kernels);
#endif
#include "cpu_files.inc"
#undef DMTL_FILE
#if defined(DMTL_AVX512BF16)
#define DMTL_FILE(op) add(Isa::avx512bf16, dmtl::avx512bf16::op##_kernels);
#include "bf16_files.inc"
#undef DMTL_FILE
#endif
    return found;
}

const std::unordered_map<std::string, Variants>& kernels() {
    static const auto all = collect();
    return all;
}

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const auto& [name, variants] : kernels()) found.push_back(name);
    std::sort(found.begin(), found.end());
    return found;
}

const dmtl::CpuKernel& find(const std::string& name) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) throw py::value_error("name must be one of kernels(), got " + name);
    return found->second.best(chosen);
}

void call(const std::string& name, int dtype, int threads, const py::dict& fields) {
    const dmtl::CpuKernel& kernel = find(name);
    dmtl::Arguments arguments;
    dmtl::fill(arguments, kernel, fields);
    const py::gil_scoped_release release;
    kernel.run(arguments.bytes, static_cast<dmtl::DType>(dtype), threads);
}

// Calls of kernels, kept with their parameters so that all of them run again without Python.
class Calls {
public:
    void add(const std::string& name, int dtype, int threads, const py::dict& fields) {
        const dmtl::CpuKernel& kernel = find(name);
        auto arguments = std::make_unique<dmtl::Arguments>();
        dmtl::fill(*arguments, kernel, fields);
        calls_.push_back({&kernel, static_cast<dmtl::DType>(dtype), threads, std::move(arguments)});
    }
    void run() const {
        const py::gil_scoped_release release;
        for (const Call& call : calls_) call.kernel->run(call.arguments->bytes, call.dtype, call.threads);
    }
    size_t size() const { return calls_.size(); }

private:
    struct Call {
        const dmtl::CpuKernel* kernel;
        dmtl::DType dtype;
        int threads;
        std::unique_ptr<dmtl::Arguments> arguments;
    };
    std::vector<Call> calls_;
};

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "CPU kernels of dmtl (called through dmtl.kernels.cpu)";
    m.attr("compiler") = DMTL_COMPILER;
#if defined(_OPENMP)
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("isas", &isas, "Return the instruction sets of this build that this processor supports, best last.");
    m.def("isa", [] { return std::string(name_of(chosen)); }, "Return the instruction set in use.");
    m.def("use_isa", &use_isa, "Choose the instruction set (for tests).");

    m.def("philox_words", &philox_words, py::arg("seed_task_sample"), py::arg("step"), py::arg("count"),
          "Return the random words of the first elements of a row (for tests).");

    m.def("kernels", &names, "Return the names of the kernels in this build.");
    m.def("call", &call, py::arg("name"), py::arg("dtype"), py::arg("threads"), py::arg("fields"),
          "Run a kernel on the fields of its parameter struct.");
    py::class_<Calls>(m, "Calls", "Calls of kernels that can run again, in the same order.")
        .def(py::init<>())
        .def("add", &Calls::add, py::arg("name"), py::arg("dtype"), py::arg("threads"), py::arg("fields"),
             "Keep a call with these arguments of `call`; it does not run now. Pointers must stay valid.")
        .def("run", &Calls::run, "Run all calls.")
        .def("__len__", &Calls::size);
}
