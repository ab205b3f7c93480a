// What the confusion matrix demands of logits, for every kernel of it.
#pragma once

#include "check.h"

namespace segkernels {

// Whether the logits have to be upsampled to the target; raises when their shapes do not fit.
inline bool check_confusion_logits(const Tensor& logits, const Tensor& target, int64_t classes) {
  bool fits = logits.dim() == target.dim() + 1 && logits.size(0) == target.size(0) && logits.size(1) == classes;
  bool same = true;
  bool smaller = logits.dim() == 4;
  for (int64_t d = 1; fits && d < target.dim(); ++d) {
    same = same && logits.size(d + 1) == target.size(d);
    smaller = smaller && logits.size(d + 1) > 0 && logits.size(d + 1) <= target.size(d);
  }
  STD_TORCH_CHECK(fits && (same || smaller), "confusion_matrix: expected logits [N, ", classes,
                  ", *] of the size of the target [N, *], or smaller in two dimensions, got ", shape_string(logits),
                  " and ", shape_string(target));
  return !same;
}

// Dense with the channels innermost. One pixel per image is that too: it makes [N, C] one run of pixels.
inline bool channels_innermost(const Tensor& logits) {
  int64_t expected = logits.size(1);
  for (int64_t d = logits.dim() - 1; d >= 0; --d) {
    if (d != 1 && logits.size(d) != 1) {
      if (logits.stride(d) != expected) {
        return false;
      }
      expected *= logits.size(d);
    }
  }
  return logits.size(1) == 1 || logits.stride(1) == 1;
}

inline void check_num_classes(int64_t num_classes) {
  STD_TORCH_CHECK(num_classes >= 1 && num_classes < INT32_MAX - 1, "confusion_matrix: expected num_classes >= 1, got ",
                  num_classes);
}

}  // namespace segkernels
