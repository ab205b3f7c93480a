// What the kernels of Dice + binary cross entropy demand of their arguments, and the layout of their statistics.
#pragma once

#include "check.h"
#include "dice.h"
#include "dispatch.h"

namespace segkernels {

constexpr const char* kDiceBceLoss = "dice_bce_loss";
constexpr int64_t kStatistics = 5;  // sums of p * t (or min(p, t)), p, t, bce, and the number of valid pixels

inline void check_dice_bce(const Tensor& input, const Tensor& target, int64_t reduction, int64_t style) {
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
}

inline void check_statistics(const Tensor& statistics, int64_t batch, int64_t channels) {
  STD_TORCH_CHECK(statistics.dim() == 3 && statistics.size(0) == batch && statistics.size(1) == channels &&
                      statistics.size(2) == kStatistics && statistics.scalar_type() == ScalarType::Double,
                  "dice_bce_loss_backward: expected float64 statistics of shape [N, C, 5], got ",
                  shape_string(statistics));
}

}  // namespace segkernels
