// Class labels of any integer dtype on the GPU: bin C holds ignored ones, bin C + 1 those outside [0, C).
#pragma once

#include <optional>

#include "check.h"
#include "cuda.cuh"

namespace segkernels {

struct LabelBins {
  const void* data;
  ScalarType dtype;
  int64_t classes, ignored;
  bool ignores;

  LabelBins(const Tensor& labels, const char* op, int64_t classes_, std::optional<int64_t> ignore_index)
      : data(labels.const_data_ptr()),
        dtype(labels.scalar_type()),
        classes(classes_),
        ignored(ignore_index.value_or(0)),
        ignores(ignore_index.has_value()) {
    STD_TORCH_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Short ||
                        dtype == ScalarType::Char || dtype == ScalarType::Byte || dtype == ScalarType::Bool,
                    op, ": expected labels of an integer dtype or bool, got ", dtype);
  }
  __device__ int64_t label(int64_t i) const {
    switch (dtype) {
      case ScalarType::Long:
        return static_cast<const int64_t*>(data)[i];
      case ScalarType::Int:
        return static_cast<const int32_t*>(data)[i];
      case ScalarType::Short:
        return static_cast<const int16_t*>(data)[i];
      case ScalarType::Char:
        return static_cast<const int8_t*>(data)[i];
      default:
        return static_cast<const uint8_t*>(data)[i];
    }
  }
  __device__ int64_t bin(int64_t i) const {
    const int64_t value = label(i);
    return ignores && value == ignored ? classes : (value >= 0 && value < classes ? value : classes + 1);
  }
};

}  // namespace segkernels
