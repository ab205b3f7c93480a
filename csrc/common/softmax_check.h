// What the kernels of losses on softmax probabilities demand of their arguments, and the layout of their sums.
#pragma once

#include "check.h"
#include "dispatch.h"

namespace segkernels {

constexpr const char* kSoftmaxStatistics = "softmax_statistics";
constexpr int64_t kRegionSums = 3;  // of p * t, p and t, for every class
constexpr int64_t kPixelSums = 3;   // of the losses, the labels' weights and the valid pixels

inline void check_softmax(const Tensor& input, const Tensor& target) {
  check_dim(input, 4, kSoftmaxStatistics, "input");
  check_dim(target, 3, kSoftmaxStatistics, "target");
  const int64_t in_h = input.size(2), in_w = input.size(3), out_h = target.size(1), out_w = target.size(2);
  const bool same = in_h == out_h && in_w == out_w;
  const bool smaller = 0 < in_h && in_h <= out_h && 0 < in_w && in_w <= out_w;
  STD_TORCH_CHECK(input.size(0) == target.size(0) && (same || smaller), kSoftmaxStatistics,
                  ": expected target [N, H, W] at least as large as input [N, C, h, w], got ", shape_string(input),
                  " and ", shape_string(target));
  STD_TORCH_CHECK(input.size(1) >= 1 && input.size(1) < INT32_MAX - 1, kSoftmaxStatistics,
                  ": expected a class or more, got ", input.size(1));
}

// Gradients of the sums and of the map of losses, which has their type.
inline void check_softmax_gradients(const Tensor& grad_region, const Tensor& grad_pixel, const Tensor& grad_losses,
                                    const Tensor& input, const Tensor& target, bool regions, bool losses) {
  const char* op = "softmax_statistics_backward";
  const ScalarType compute = compute_type(input.scalar_type());
  STD_TORCH_CHECK(grad_region.scalar_type() == ScalarType::Double && grad_pixel.scalar_type() == ScalarType::Double &&
                      grad_region.numel() == (regions ? input.size(0) * input.size(1) * kRegionSums : 0) &&
                      grad_pixel.numel() == input.size(0) * kPixelSums,
                  op, ": expected float64 grad_region [N, C, 3] and grad_pixel [N, 3], got ", shape_string(grad_region),
                  " and ", shape_string(grad_pixel));
  STD_TORCH_CHECK(grad_losses.scalar_type() == compute && grad_losses.numel() == (losses ? target.numel() : 0), op,
                  ": expected grad_losses of shape [N, H, W] and the type of losses, got ", shape_string(grad_losses));
}

}  // namespace segkernels
