// Dice + binary cross entropy beyond the pixels: parameters, and what the loss and the gradient need from the sums of
// every plane. O(N*C) work in float64.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dice_bce_check.h"
#include "loss_blocks.h"

namespace segkernels {

struct DiceBceParams {
  int64_t batch, channels, pixels;
  double dice_weight, bce_weight;
  std::optional<int64_t> ignore_index;
  DiceParams dice;
  bool from_logits;
  bool soft_target;  // the intersection is sum min(p, t)
  std::vector<double> pos_weight, class_weights;
};

inline DiceBceParams make_params(const Tensor& input, const Tensor& target, const std::optional<Tensor>& pos_weight,
                                 const std::optional<Tensor>& class_weights, double dice_weight, double bce_weight,
                                 double smooth, std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                 bool batch_dice, bool include_background, bool log_loss, bool from_logits) {
  check_dice_bce(input, target, reduction, style);
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
          is_floating(target.scalar_type()) && static_cast<DiceStyle>(style) == DiceStyle::kSmp,
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
