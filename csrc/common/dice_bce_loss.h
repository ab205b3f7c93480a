// Dice + binary cross entropy beyond the pixels: parameters, and what the loss and the gradient need from the sums of
// every plane. O(N*C) work in float64.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "dice.h"
#include "loss_blocks.h"

namespace segkernels {

constexpr const char* kDiceBceLoss = "dice_bce_loss";
constexpr int64_t kStatistics = 5;  // sums of p * t (or min(p, t)), p, t, bce, and the number of valid pixels

struct DiceBceParams {
  int64_t batch, channels, pixels;
  double dice_weight, bce_weight;
  std::optional<int64_t> ignore_index;
  DiceParams dice;
  bool from_logits;
  bool soft_target;  // the intersection is sum min(p, t)
  std::vector<double> pos_weight, class_weights;
};

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline DiceBceParams make_params(const Tensor& input, const Tensor& target, const std::optional<Tensor>& pos_weight,
                                 const std::optional<Tensor>& class_weights, double dice_weight, double bce_weight,
                                 double smooth, std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                 bool batch_dice, bool include_background, bool log_loss, bool from_logits) {
  check_dim(input, 4, kDiceBceLoss, "input");
  check_same_shape(input, target, kDiceBceLoss, "input", "target");
  STD_TORCH_CHECK(is_floating(input.scalar_type()), kDiceBceLoss,
                  ": expected input of float32, float64, float16 or bfloat16, got ", input.scalar_type());
  const ScalarType labels = target.scalar_type();
  STD_TORCH_CHECK(is_floating(labels) || labels == ScalarType::Byte || labels == ScalarType::Bool ||
                      labels == ScalarType::Int || labels == ScalarType::Long,
                  kDiceBceLoss, ": expected target of uint8, bool, int32, int64 or a floating type, got ", labels);
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, kDiceBceLoss, ": expected reduction 0, 1 or 2, got ", reduction);
  STD_TORCH_CHECK(style >= 0 && style <= 2, kDiceBceLoss, ": expected style 0, 1 or 2, got ", style);
  const int64_t channels = input.size(1);
  return {input.size(0),
          channels,
          input.size(2) * input.size(3),
          dice_weight,
          bce_weight,
          ignore_index,
          {static_cast<DiceStyle>(style), static_cast<Reduction>(reduction), batch_dice, include_background, log_loss,
           smooth},
          from_logits,
          is_floating(labels) && static_cast<DiceStyle>(style) == DiceStyle::kSmp,
          channel_weights(pos_weight, channels, kDiceBceLoss, "pos_weight"),
          channel_weights(class_weights, channels, kDiceBceLoss, "class_weights")};
}

inline std::vector<DiceSums> dice_sums(const DiceBceParams& p, const double* statistics) {
  std::vector<DiceSums> sums(p.batch * p.channels);
  for (size_t i = 0; i < sums.size(); ++i) {
    const double* s = statistics + i * kStatistics;
    sums[i] = {s[0], s[1] + s[2], s[2], s[4]};
  }
  return sums;
}

inline double valid_pixels(const DiceBceParams& p, const double* statistics) {
  double count = 0;
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    count += statistics[i * kStatistics + 4];
  }
  return count;
}

inline double reduced_loss(const DiceBceParams& p, const double* statistics, const std::vector<DiceGroup>& groups) {
  const double count = valid_pixels(p, statistics);
  if (count == 0) {
    return 0;
  }
  double loss = 0;
  // A term without weight is left out, so that it cannot make NaN of 0 * inf.
  if (p.bce_weight != 0) {
    for (int64_t i = 0; i < p.batch * p.channels; ++i) {
      loss += p.class_weights[i % p.channels] * statistics[i * kStatistics + 3];
    }
    loss *= p.bce_weight / (p.dice.reduction == Reduction::kMean ? count : 1.0);
  }
  if (p.dice_weight != 0) {
    loss += p.dice_weight * dice_total(p.dice, groups, p.batch, p.channels);
  }
  return loss;
}

// Coefficients of one plane: gradient = bce * dbce/dx + (intersection * d(intersection)/dp + cardinality) * dp/dx.
template <typename T>
struct Slopes {
  T bce, intersection, cardinality;
};

// Coefficients of every plane, where `upstream[i]` is the gradient that reaches plane i's group (summed in 'none').
template <typename T>
std::vector<Slopes<T>> plane_slopes(const DiceBceParams& p, const double* statistics,
                                    const std::vector<DiceGroup>& groups, const std::vector<double>& upstream,
                                    double bce_upstream) {
  const double count = p.dice.reduction == Reduction::kMean ? valid_pixels(p, statistics) : 1.0;
  std::vector<Slopes<T>> slopes(p.batch * p.channels);
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    const double bce = p.bce_weight == 0 || count == 0 ? 0.0 : bce_upstream * p.bce_weight / count;
    const double dice = p.dice_weight == 0 ? 0.0 : upstream[i] * p.dice_weight * groups[i].weight;
    slopes[i] = {static_cast<T>(bce * p.class_weights[i % p.channels]),
                 static_cast<T>(dice == 0 ? 0.0 : dice * groups[i].d_intersection),
                 static_cast<T>(dice == 0 ? 0.0 : dice * groups[i].d_cardinality)};
  }
  return slopes;
}

}  // namespace segkernels
