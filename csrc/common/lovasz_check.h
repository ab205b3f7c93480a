// What the kernels of the Lovasz losses demand of their arguments.
#pragma once

#include "check.h"

namespace segkernels {

constexpr const char* kLovaszLoss = "lovasz_loss";

enum class Errors : int64_t { kHinge = 0, kSoftmax = 1, kProbabilities = 2 };

inline void check_lovasz(const Tensor& input, const Tensor& target, int64_t errors, bool per_image) {
  check_dim(input, 4, kLovaszLoss, "input");
  STD_TORCH_CHECK(errors >= 0 && errors <= 2, kLovaszLoss, ": expected errors of 0 to 2, got ", errors);
  const int64_t samples = per_image ? std::min<int64_t>(input.size(0), 1) : input.size(0);  // of one loss
  STD_TORCH_CHECK(samples * input.size(1) * input.size(2) * input.size(3) < int64_t{1} << 31, kLovaszLoss,
                  ": expected fewer than 2^31 values in one loss (per_image=True makes one a sample), got input ",
                  shape_string(input));
  if (static_cast<Errors>(errors) == Errors::kHinge) {
    check_same_shape(input, target, kLovaszLoss, "input", "target");
  } else {
    STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == input.size(0) && target.size(1) == input.size(2) &&
                        target.size(2) == input.size(3),
                    kLovaszLoss, ": expected target [N, H, W] for input ", shape_string(input), ", got ",
                    shape_string(target));
  }
}

inline void check_lovasz_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& slopes,
                                  int64_t groups) {
  check_same_shape(input, slopes, "lovasz_loss_backward", "input", "slopes");
  STD_TORCH_CHECK(grad_output.numel() == groups && grad_output.scalar_type() == slopes.scalar_type(),
                  "lovasz_loss_backward: expected grad_output [", groups, "] of the dtype of slopes, got shape ",
                  shape_string(grad_output));
}

}  // namespace segkernels
