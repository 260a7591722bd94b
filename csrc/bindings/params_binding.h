// Binds a plain parameter struct: every field becomes a Python property, pointers as integers (tensor.data_ptr()), arrays as
// lists. A fresh struct is all zero.
#pragma once

#include "dmtl/params.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace dmtl {

template <class V>
auto to_python(V value) {
    if constexpr (std::is_pointer_v<V>)
        return reinterpret_cast<uintptr_t>(value);
    else
        return value;
}

template <class V, class N>
V from_python(N value) {
    if constexpr (std::is_pointer_v<V>)
        return reinterpret_cast<V>(value);
    else
        return value;
}

template <class Params>
class ParamsBinding {
  public:
    ParamsBinding(pybind11::module_& module, const char* name) : class_(module, name, pybind11::module_local()) {
        class_.def(pybind11::init([] { return Params{}; }));
    }

    template <class V>
    ParamsBinding& field(const char* name, V Params::* member) {
        using Number = decltype(to_python(V{}));
        class_.def_property(
            name, [member](const Params& p) { return to_python(p.*member); },
            [member](Params& p, Number value) { p.*member = from_python<V>(value); });
        return *this;
    }

    template <class V, size_t n>
    ParamsBinding& field(const char* name, V (Params::*member)[n]) {
        using Numbers = std::array<decltype(to_python(V{})), n>;
        class_.def_property(
            name,
            [member](const Params& p) {
                Numbers values;
                for (size_t i = 0; i < n; ++i) values[i] = to_python((p.*member)[i]);
                return values;
            },
            [member](Params& p, const Numbers& values) {
                for (size_t i = 0; i < n; ++i) (p.*member)[i] = from_python<V>(values[i]);
            });
        return *this;
    }

  private:
    pybind11::class_<Params> class_;
};

inline void bind_noising_params(pybind11::module_& m) {
    using P = NoisingParams;
    ParamsBinding<P>(m, "NoisingParams")
        .field("out", &P::out).field("x", &P::x).field("y", &P::y).field("noise", &P::noise).field("key", &P::key)
        .field("t", &P::t).field("coef_x", &P::coef_x).field("coef_y", &P::coef_y).field("coef_noise", &P::coef_noise)
        .field("batch", &P::batch).field("count", &P::count).field("channels", &P::channels)
        .field("stride_out", &P::stride_out).field("stride_x", &P::stride_x).field("stride_y", &P::stride_y)
        .field("stride_noise", &P::stride_noise).field("table_size", &P::table_size).field("step", &P::step);
}

inline void bind_scaling_params(pybind11::module_& m) {
    using P = ScalingParams;
    ParamsBinding<P>(m, "ScalingParams")
        .field("out", &P::out).field("table", &P::table).field("grad", &P::grad).field("t", &P::t)
        .field("batch", &P::batch).field("count", &P::count).field("stride_out", &P::stride_out)
        .field("stride_grad", &P::stride_grad).field("table_size", &P::table_size);
}

}  // namespace dmtl
