// dmtl._core_cuda: the Python bindings of the CUDA kernels. The module imports without a GPU (static CUDA runtime) and does not
// use torch.
#include "arguments.h"
#include "dmtl/cuda_kernel.h"

#include <cuda_runtime_api.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

// The kernel tables of all files in kernels/cuda.
#define DMTL_FILE(op) \
    namespace dmtl::cuda { extern const CudaKernelTable op##_kernels; }
#include "cuda_files.inc"
#undef DMTL_FILE

namespace py = pybind11;

namespace {

const std::unordered_map<std::string, const dmtl::CudaKernel*>& kernels() {
    static const auto all = [] {
        std::unordered_map<std::string, const dmtl::CudaKernel*> found;
        const auto add = [&found](const dmtl::CudaKernelTable& table) {
            for (size_t i = 0; i < table.count; ++i) found[table.kernels[i].name] = &table.kernels[i];
        };
#define DMTL_FILE(op) add(dmtl::cuda::op##_kernels);
#include "cuda_files.inc"
#undef DMTL_FILE
        return found;
    }();
    return all;
}

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const auto& [name, kernel] : kernels()) found.push_back(name);
    std::sort(found.begin(), found.end());
    return found;
}

void call(const std::string& name, int dtype, uintptr_t stream, const py::dict& fields) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) throw py::value_error("call: name must be one of kernels(), got " + name);
    dmtl::Arguments arguments;
    dmtl::fill(arguments, *found->second, fields);
    const cudaError_t error = [&] {
        const py::gil_scoped_release release;
        return found->second->run(arguments.bytes, static_cast<dmtl::DType>(dtype), reinterpret_cast<cudaStream_t>(stream));
    }();
    if (error != cudaSuccess) throw std::runtime_error(name + ": CUDA launch failed: " + cudaGetErrorString(error));
}

}  // namespace

PYBIND11_MODULE(_core_cuda, m) {
    m.doc() = "CUDA kernels of dmtl (called through dmtl.kernels.cuda)";
    m.attr("archs") = DMTL_CUDA_ARCHS;
    m.attr("toolkit") = DMTL_CUDA_TOOLKIT;
    m.def("kernels", &names, "Return the names of the kernels in this build.");
    m.def("call", &call, py::arg("name"), py::arg("dtype"), py::arg("stream"), py::arg("fields"),
          "Launch a kernel on the fields of its parameter struct.");
}
