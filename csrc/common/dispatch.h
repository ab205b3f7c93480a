// dtype dispatch by templated lambda: dispatch_floating(dtype, "op", [&]<typename scalar_t>() { ... });
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace segkernels {

using torch::headeronly::ScalarType;
using bfloat16 = c10::BFloat16;
using half = c10::Half;

// The type sums and coordinates are kept in: float64 for float64, float32 for everything else.
template <typename scalar_t>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using accumulate_t = typename accumulate<scalar_t>::type;

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

template <typename F>
void dispatch_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Half:
      return f.template operator()<half>();
    case ScalarType::BFloat16:
      return f.template operator()<bfloat16>();
    default:
      STD_TORCH_CHECK(false, op, ": expected a float32, float64, float16 or bfloat16 tensor, got ", dtype);
  }
}

inline ScalarType compute_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// By the type that sums and coordinates are kept in.
template <typename F>
void dispatch_compute(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) {
    f.template operator()<double>();
  } else {
    f.template operator()<float>();
  }
}

// Flat positions (int64) or offsets inside the pooling window (uint8).
template <typename F>
void dispatch_index(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    case ScalarType::Byte:
      return f.template operator()<uint8_t>();
    default:
      STD_TORCH_CHECK(false, op, ": expected indices of int64 or uint8 (window offsets), got ", dtype);
  }
}

}  // namespace segkernels
