// Losses on softmax probabilities beyond the pixels: parameters, and the sums that forward returns.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "loss_blocks.h"
#include "softmax_check.h"

namespace segkernels {

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
  check_softmax(input, target);
  const int64_t classes = input.size(1);
  const int64_t in_h = input.size(2), in_w = input.size(3), out_h = target.size(1), out_w = target.size(2);
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
