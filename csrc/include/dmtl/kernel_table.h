// Tables of kernels: each kernel file has a constant table of names, parameter fields and entry points, which the bindings
// read. Nothing here runs at start-up, so a file that was compiled for an instruction set that the processor lacks does no
// harm.
//
//     constexpr Field kFields[] = {DMTL_FIELDS(Params, out, count)};       at most twelve members, then another DMTL_FIELDS
//     DMTL_KERNELS(my_op, cpu_kernel<Params, &my_op>("my_op", kFields), ...)      at the end of csrc/cpu/my_op.cpp
//     DMTL_KERNELS(my_op, cuda_kernel<Params, &my_op>("my_op", kFields), ...)     at the end of kernels/cuda/my_op.cu
//
// CMake finds the table by the name of the file. Kernels are usually called `<op>` and `<op>_backward`.
#pragma once

#include "dmtl/params.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace dmtl {

enum class FieldKind : int { pointer, integer, real };

// One member of a parameter struct: `count` elements of `size` bytes (count > 1: an array).
struct Field {
    const char* name;
    size_t offset, size, count;
    FieldKind kind;
};

template <class Result, class Context>
struct Kernel {
    const char* name;
    const Field* fields;
    size_t field_count;
    size_t params_size;
    Result (*run)(const void* params, DType dtype, Context context);
};

template <class Result, class Context>
struct KernelTable {
    const Kernel<Result, Context>* kernels;
    size_t count;
};

using CpuKernel = Kernel<void, int>;  // context: the number of threads
using CpuKernelTable = KernelTable<void, int>;

namespace {

template <class Member>
constexpr Field field(const char* name, size_t offset) {
    using Element = std::remove_all_extents_t<Member>;
    constexpr FieldKind kind = std::is_pointer_v<Element>          ? FieldKind::pointer
                               : std::is_floating_point_v<Element> ? FieldKind::real
                                                                   : FieldKind::integer;
    return {name, offset, sizeof(Element), sizeof(Member) / sizeof(Element), kind};
}

template <class Params, class Result, class Context, Result (*kernel)(const Params&, DType, Context)>
Result run_erased(const void* params, DType dtype, Context context) {
    return kernel(*static_cast<const Params*>(params), dtype, context);
}

template <class Params, void (*kernel)(const Params&, DType, int), size_t n>
constexpr CpuKernel cpu_kernel(const char* name, const Field (&fields)[n]) {
    static_assert(std::is_trivial_v<Params> && std::is_standard_layout_v<Params>);
    return {name, fields, n, sizeof(Params), &run_erased<Params, void, int, kernel>};
}

}  // namespace
}  // namespace dmtl

// Entries of a field table for one to twelve members of a parameter struct.
#define DMTL_FIELD(Params, member) ::dmtl::field<decltype(Params::member)>(#member, offsetof(Params, member))
#define DMTL_FIELDS_1(Params, a) DMTL_FIELD(Params, a)
#define DMTL_FIELDS_2(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_1(Params, __VA_ARGS__)
#define DMTL_FIELDS_3(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_2(Params, __VA_ARGS__)
#define DMTL_FIELDS_4(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_3(Params, __VA_ARGS__)
#define DMTL_FIELDS_5(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_4(Params, __VA_ARGS__)
#define DMTL_FIELDS_6(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_5(Params, __VA_ARGS__)
#define DMTL_FIELDS_7(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_6(Params, __VA_ARGS__)
#define DMTL_FIELDS_8(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_7(Params, __VA_ARGS__)
#define DMTL_FIELDS_9(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_8(Params, __VA_ARGS__)
#define DMTL_FIELDS_10(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_9(Params, __VA_ARGS__)
#define DMTL_FIELDS_11(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_10(Params, __VA_ARGS__)
#define DMTL_FIELDS_12(Params, a, ...) DMTL_FIELD(Params, a), DMTL_FIELDS_11(Params, __VA_ARGS__)
#define DMTL_THIRTEENTH(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, ...) a13
#define DMTL_FIELDS(Params, ...)                                                                \
    DMTL_THIRTEENTH(__VA_ARGS__, DMTL_FIELDS_12, DMTL_FIELDS_11, DMTL_FIELDS_10, DMTL_FIELDS_9, \
                    DMTL_FIELDS_8, DMTL_FIELDS_7, DMTL_FIELDS_6, DMTL_FIELDS_5, DMTL_FIELDS_4,  \
                    DMTL_FIELDS_3, DMTL_FIELDS_2, DMTL_FIELDS_1, )                              \
    (Params, __VA_ARGS__)

// Defines the table of the file, `<op>_kernels`, in the current namespace.
#define DMTL_KERNELS_OF(Entry, op, ...)                                    \
    namespace { constexpr Entry op##_list[] = {__VA_ARGS__}; }             \
    extern const Entry##Table op##_kernels;                                \
    const Entry##Table op##_kernels = {op##_list, sizeof(op##_list) / sizeof(op##_list[0])};

#if defined(__CUDACC__)
#define DMTL_KERNELS(op, ...) DMTL_KERNELS_OF(CudaKernel, op, __VA_ARGS__)
#else
#define DMTL_KERNELS(op, ...) DMTL_KERNELS_OF(CpuKernel, op, __VA_ARGS__)
#endif
