// What upsample_argmax demands of logits and labels.
#pragma once

#include "check.h"

namespace segkernels {

inline ScalarType label_dtype(const Tensor& logits, int64_t label_bits) {
  STD_TORCH_CHECK(logits.size(1) > 0, "upsample_argmax: expected at least one class, got ", shape_string(logits));
  STD_TORCH_CHECK(label_bits == 8 || label_bits == 32 || label_bits == 64,
                  "upsample_argmax: expected labels of 8, 32 or 64 bits, got ", label_bits);
  return label_bits == 8 ? ScalarType::Byte : label_bits == 32 ? ScalarType::Int : ScalarType::Long;
}

}  // namespace segkernels
