// Fills the parameter struct of a kernel from Python keyword arguments, according to the kernel's field table. Pointers are
// integers (tensor.data_ptr()), arrays are sequences (if one is too short, the rest is zero). All fields must be given, and no
// others.
#pragma once

#include "dmtl/kernel_table.h"

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace dmtl {

constexpr size_t kMostParams = 4096;  // maximum bytes of a parameter struct

struct Arguments {
    alignas(16) std::byte bytes[kMostParams] = {};
};

inline void store_integer(std::byte* target, size_t size, int64_t value) {
    // Little endian: the low bytes come first.
    std::memcpy(target, &value, size);
}

inline void store_value(std::byte* target, const Field& field, pybind11::handle value) {
    if (field.kind == FieldKind::real) {
        const double number = value.cast<double>();
        const float narrow = static_cast<float>(number);
        std::memcpy(target, field.size == sizeof(double) ? static_cast<const void*>(&number) : &narrow, field.size);
    } else if (field.kind == FieldKind::pointer) {
        const uint64_t address = value.is_none() ? 0 : value.cast<uint64_t>();
        std::memcpy(target, &address, sizeof address);
    } else {
        store_integer(target, field.size, value.cast<int64_t>());
    }
}

inline void store_field(std::byte* bytes, const Field& field, pybind11::handle value) {
    std::byte* target = bytes + field.offset;
    if (field.count == 1) return store_value(target, field, value);
    const auto values = pybind11::reinterpret_borrow<pybind11::sequence>(value);
    if (values.size() > field.count)
        throw pybind11::value_error(std::string(field.name) + " must hold at most " + std::to_string(field.count) +
                                    " entries, got " + std::to_string(values.size()));
    for (size_t i = 0; i < values.size(); ++i) store_value(target + i * field.size, field, values[i]);
}

template <class Result, class Context>
void fill(Arguments& arguments, const Kernel<Result, Context>& kernel, const pybind11::dict& values) {
    if (kernel.params_size > kMostParams)
        throw pybind11::value_error(std::string(kernel.name) + ": its parameters are larger than kMostParams");
    for (size_t i = 0; i < kernel.field_count; ++i) {
        const Field& field = kernel.fields[i];
        PyObject* value = PyDict_GetItemString(values.ptr(), field.name);
        if (value == nullptr) throw pybind11::type_error(std::string(kernel.name) + ": field " + field.name + " is missing");
        store_field(arguments.bytes, field, value);
    }
    if (values.size() == kernel.field_count) return;
    for (const auto& item : values) {
        const auto name = item.first.cast<std::string>();
        bool known = false;
        for (size_t i = 0; i < kernel.field_count; ++i) known = known || name == kernel.fields[i].name;
        if (!known) throw pybind11::type_error(std::string(kernel.name) + ": there is no field " + name);
    }
}

}  // namespace dmtl
