// What the kernels of losses on sigmoid probabilities demand of their arguments, and the layout of their sums.
#pragma once

#include "check.h"

namespace segkernels {

constexpr const char* kSigmoidStatistics = "sigmoid_statistics";
constexpr int64_t kSigmoidRegion = 3;  // sums of p * t (or min(p, t)), p and t
constexpr int64_t kSigmoidPixel = 2;   // of the losses and of the valid pixels

inline void check_sigmoid(const Tensor& input, const Tensor& target, double gamma) {
  check_dim(input, 4, kSigmoidStatistics, "input");
  check_dim(target, 4, kSigmoidStatistics, "target");
  const bool empty = target.size(2) * target.size(3) == 0;
  STD_TORCH_CHECK(input.size(0) == target.size(0) && input.size(1) == target.size(1) &&
                      input.size(2) <= target.size(2) && input.size(3) <= target.size(3) &&
                      (empty || input.size(2) * input.size(3) > 0),
                  kSigmoidStatistics, ": expected target [N, C, H, W] of at least the size of input ",
                  shape_string(input), ", got ", shape_string(target));
  STD_TORCH_CHECK(gamma >= 0, kSigmoidStatistics, ": expected gamma of at least 0, got ", gamma);
}

inline void check_sigmoid_gradients(const Tensor& grad_region, const Tensor& grad_pixel, const Tensor& grad_losses,
                                    const Tensor& target, bool losses) {
  const int64_t planes = target.size(0) * target.size(1);
  STD_TORCH_CHECK(grad_region.numel() == planes * kSigmoidRegion && grad_pixel.numel() == planes * kSigmoidPixel &&
                      grad_region.scalar_type() == ScalarType::Double && grad_pixel.scalar_type() == ScalarType::Double,
                  "sigmoid_statistics_backward: expected float64 gradients [N, C, 3] and [N, C, 2], got ",
                  shape_string(grad_region), " and ", shape_string(grad_pixel));
  if (losses) {
    check_same_shape(grad_losses, target, "sigmoid_statistics_backward", "grad_losses", "target");
  }
}

}  // namespace segkernels
