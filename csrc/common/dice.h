// The Dice term from its sums, in the conventions of the lecture, segmentation-models-pytorch 0.6 and MONAI: O(N*C)
// work that every Dice loss finishes with, in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "host_device.h"

namespace segkernels {

enum class DiceStyle : int64_t { kLecture = 0, kSmp = 1, kMonai = 2 };
enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct DiceParams {
  DiceStyle style;
  Reduction reduction;
  bool batch_dice;  // one group per channel, pooled over the batch, instead of one per sample and channel
  bool include_background;
  bool log_loss;
  double smooth;
};

// Sums over the valid pixels of one plane, or of one group of planes.
struct DiceSums {
  double intersection;  // sum p * t, or sum min(p, t)
  double cardinality;   // sum p + sum t
  double target;        // sum t
  double valid;         // number of pixels
};

// The group that a plane belongs to: its loss, its weight in the reduced loss, and the derivatives of its loss.
struct DiceGroup {
  double loss = 0;
  double weight = 0;
  double d_intersection = 0;
  double d_cardinality = 0;
};

// A denominator or a score below it counts as it (smp's eps), which keeps smooth = 0 finite.
constexpr double kDiceEps = 1e-7;

SEGKERNELS_HOST_DEVICE DiceGroup dice_group(const DiceParams& params, const DiceSums& sums) {
  DiceGroup group;
  if (sums.valid == 0) {
    return group;
  }
  // smp adds `smooth` after halving both sides.
  const double smooth = params.style == DiceStyle::kSmp ? 2 * params.smooth : params.smooth;
  const double floor = 2 * kDiceEps;
  const bool at_floor = sums.cardinality + smooth < floor;
  const double denominator = at_floor ? floor : sums.cardinality + smooth;
  const double score = (2 * sums.intersection + smooth) / denominator;
  const double d_score = !params.log_loss ? -1.0 : (score < kDiceEps ? 0.0 : -1.0 / score);
  group.loss = params.log_loss ? -std::log(score < kDiceEps ? kDiceEps : score) : 1 - score;
  group.d_intersection = d_score * 2 / denominator;
  group.d_cardinality = at_floor ? 0.0 : d_score * -score / denominator;
  if (params.style == DiceStyle::kSmp && sums.target <= 0) {
    // smp: an absent class contributes nothing. By multiplication, so that NaN stays.
    group.loss *= 0;
    group.d_intersection *= 0;
    group.d_cardinality *= 0;
  }
  return group;
}

// The group of every plane [N * C]. Weights are such that sum(weight * loss) over distinct groups is the Dice term;
// class weights: a weighted mean in the styles lecture and smp, a factor before the mean in monai.
inline std::vector<DiceGroup> dice_groups(const DiceParams& params, const std::vector<DiceSums>& planes, int64_t batch,
                                          int64_t channels, const std::vector<double>& class_weights) {
  std::vector<DiceGroup> groups(planes.size());
  // A single channel is the foreground: nothing to leave out, and nothing to weigh for MONAI.
  const int64_t first = params.include_background || channels == 1 ? 0 : 1;
  const bool weighted = !(params.style == DiceStyle::kMonai && channels == 1);
  double total_weight = 0;
  for (int64_t c = first; c < channels; ++c) {
    total_weight += params.style == DiceStyle::kMonai ? 1.0 : class_weights[c];
  }
  total_weight *= params.batch_dice ? 1.0 : static_cast<double>(batch);
  for (int64_t c = first; c < channels; ++c) {
    double weight = weighted ? class_weights[c] : 1.0;
    if (params.reduction == Reduction::kMean) {
      weight = total_weight == 0 ? 0.0 : weight / total_weight;
    }
    DiceSums pooled{};
    for (int64_t n = 0; n < batch; ++n) {
      const DiceSums& plane = planes[n * channels + c];
      pooled.intersection += plane.intersection;
      pooled.cardinality += plane.cardinality;
      pooled.target += plane.target;
      pooled.valid += plane.valid;
      if (!params.batch_dice) {
        groups[n * channels + c] = dice_group(params, plane);
        groups[n * channels + c].weight = weight;
      }
    }
    if (params.batch_dice) {
      DiceGroup group = dice_group(params, pooled);
      group.weight = weight;
      for (int64_t n = 0; n < batch; ++n) {
        groups[n * channels + c] = group;
      }
    }
  }
  return groups;
}

// sum(weight * loss) over the distinct groups.
inline double dice_total(const DiceParams& params, const std::vector<DiceGroup>& groups, int64_t batch,
                         int64_t channels) {
  double total = 0;
  const int64_t samples = params.batch_dice && batch > 0 ? 1 : batch;
  for (int64_t i = 0; i < samples * channels; ++i) {
    total += groups[i].weight * groups[i].loss;
  }
  return total;
}

}  // namespace segkernels
