// Losses on softmax probabilities beyond the pixels: parameters, and the sums that forward returns.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "loss_blocks.h"

namespace segkernels {

constexpr const char* kSoftmaxStatistics = "softmax_statistics";
constexpr int64_t kRegionSums = 3;  // of p * t, p and t, for every class
constexpr int64_t kPixelSums = 3;   // of the losses, the labels' weights and the valid pixels

struct SoftmaxParams {
  int64_t batch, classes;
  int64_t in_h, in_w, out_h, out_w;
  double label_smoothing, gamma;
  bool regions, losses, align_corners;
  std::vector<double> weights;  // [C]
  double weight_sum;

  bool upsampled() const {
    return in_h != out_h || in_w != out_w;
  }
  int64_t pixels() const {
    return out_h * out_w;
  }
};

inline SoftmaxParams softmax_params(const Tensor& input, const Tensor& target,
                                    const std::optional<Tensor>& class_weights, double label_smoothing, double gamma,
                                    bool regions, bool losses, bool align_corners) {
  check_dim(input, 4, kSoftmaxStatistics, "input");
  check_dim(target, 3, kSoftmaxStatistics, "target");
  const int64_t classes = input.size(1);
  const int64_t in_h = input.size(2), in_w = input.size(3), out_h = target.size(1), out_w = target.size(2);
  const bool same = in_h == out_h && in_w == out_w;
  const bool smaller = 0 < in_h && in_h <= out_h && 0 < in_w && in_w <= out_w;
  STD_TORCH_CHECK(input.size(0) == target.size(0) && (same || smaller), kSoftmaxStatistics,
                  ": expected target [N, H, W] at least as large as input [N, C, h, w], got ", shape_string(input),
                  " and ", shape_string(target));
  STD_TORCH_CHECK(classes >= 1 && classes < INT32_MAX - 1, kSoftmaxStatistics, ": expected a class or more, got ",
                  classes);
  SoftmaxParams p{input.size(0),
                  classes,
                  in_h,
                  in_w,
                  out_h,
                  out_w,
                  label_smoothing,
                  gamma,
                  regions,
                  losses,
                  align_corners,
                  channel_weights(class_weights, classes, kSoftmaxStatistics, "class_weights"),
                  0};
  for (const double weight : p.weights) {
    p.weight_sum += weight;
  }
  return p;
}

// Sums of one item of parallel work, in float64.
struct SoftmaxSums {
  std::vector<double> region;  // [C, 3]
  double pixel[kPixelSums] = {};
};

}  // namespace segkernels
