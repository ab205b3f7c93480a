// Dice + binary cross entropy on the GPU. Forward reads logits and target once: every block sums one chunk of a plane,
// then the chunks of a plane are summed in their order, in float64, and one block finishes the loss on the device.
// Backward reads them once more. Chunks depend on the shape alone, there are no atomics, and the host waits for
// nothing.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "dice_bce_loss.cuh"

namespace segkernels {
namespace {

Params make_params(const Tensor& input, const Tensor& target, double dice_weight, double bce_weight, double smooth,
                   std::optional<int64_t> ignore_index, int64_t reduction, int64_t style, bool batch_dice,
                   bool include_background, bool log_loss, bool from_logits) {
  check_dice_bce(input, target, reduction, style);
  const int64_t pixels = input.size(2) * input.size(3);
  const DiceStyle dice_style = static_cast<DiceStyle>(style);
  return {input.size(0),
          input.size(1),
          pixels,
          (pixels + kChunkPixels - 1) / kChunkPixels,
          dice_weight,
          bce_weight,
          ignore_index.value_or(0),
          ignore_index.has_value(),
          from_logits,
          dice_style == DiceStyle::kSmp && is_floating(target.scalar_type()),
          {dice_style, static_cast<Reduction>(reduction), batch_dice, include_background, log_loss, smooth}};
}

std::tuple<Tensor, Tensor> dice_bce_loss_cuda(const Tensor& input,   // [N, C, H, W]
                                              const Tensor& target,  // [N, C, H, W]
                                              std::optional<Tensor> pos_weight, std::optional<Tensor> class_weights,
                                              double dice_weight, double bce_weight, double smooth,
                                              std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                              bool batch_dice, bool include_background, bool log_loss,
                                              bool from_logits) {
  const Params p = make_params(input, target, dice_weight, bce_weight, smooth, ignore_index, reduction, style,
                               batch_dice, include_background, log_loss, from_logits);
  const bool map = p.dice.reduction == Reduction::kNone;
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const std::optional<Tensor> positives = as_doubles(pos_weight);
  const std::optional<Tensor> classes = as_doubles(class_weights);
  const Weights positive = weights_of(positives, p.channels, kDiceBceLoss, "pos_weight");
  const Weights weights = weights_of(classes, p.channels, kDiceBceLoss, "class_weights");
  const View inputs(logits, p.channels, p.pixels, channels_last);
  const View targets(labels, p.channels, p.pixels, target_last);

  const bool float64_loss = input.scalar_type() == ScalarType::Double;
  const ScalarType loss_dtype = float64_loss ? ScalarType::Double : ScalarType::Float;
  Tensor statistics = empty({p.batch, p.channels, kStatistics}, ScalarType::Double, input);
  Tensor loss = map ? empty_nchw(p.batch, p.channels, input.size(2), input.size(3), loss_dtype, input, channels_last)
                    : empty({}, loss_dtype, input);
  Tensor partial = empty_doubles(p.planes() * p.chunks * kStatistics, input);
  Tensor coefficients = empty_doubles(p.planes() * kCoefficients, input);
  const DeviceScope scope(input);
  const dim3 chunks(blocks_for(p.planes() * p.chunks, 1));
  dispatch_floating(input.scalar_type(), kDiceBceLoss, [&]<typename scalar_t>() {
    launch(dice_bce_fwd_kernel<scalar_t>, chunks, kThreads, 0, scope.stream(), p, inputs, targets, positive,
           doubles(partial));
  });
  launch(plane_sums_kernel<kStatistics>, blocks_for(p.planes(), 1), kThreads, 0, scope.stream(), p.planes(), p.chunks,
         doubles(partial), doubles(statistics));
  launch(finish_kernel, 1, kThreads, 0, scope.stream(), p, doubles(statistics), weights, Weights{}, nullptr,
         doubles(coefficients), map ? nullptr : loss.mutable_data_ptr(), float64_loss);
  if (map) {
    dispatch_floating(input.scalar_type(), kDiceBceLoss, [&]<typename scalar_t>() {
      launch(dice_bce_map_kernel<scalar_t>, chunks, kThreads, 0, scope.stream(), p, inputs, targets, positive,
             doubles(coefficients), View(loss, p.channels, p.pixels, channels_last));
    });
  }
  return {loss, statistics};
}

Tensor dice_bce_loss_backward_cuda(const Tensor& grad_output,  // [] or, reduction 'none', [N, C, H, W]
                                   const Tensor& input,        // [N, C, H, W]
                                   const Tensor& target,       // [N, C, H, W]
                                   const Tensor& statistics,   // [N, C, 5]
                                   std::optional<Tensor> pos_weight, std::optional<Tensor> class_weights,
                                   double dice_weight, double bce_weight, double smooth,
                                   std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                   bool batch_dice, bool include_background, bool log_loss, bool from_logits) {
  const Params p = make_params(input, target, dice_weight, bce_weight, smooth, ignore_index, reduction, style,
                               batch_dice, include_background, log_loss, from_logits);
  check_statistics(statistics, p.batch, p.channels);
  const bool map = p.dice.reduction == Reduction::kNone;
  if (map) {
    check_same_shape(grad_output, input, "dice_bce_loss_backward", "grad_output", "input");
  } else {
    check_dim(grad_output, 0, "dice_bce_loss_backward", "grad_output");
  }
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const Tensor grad = to_dense(grad_output, map && channels_last);
  Tensor totals = torch::stable::contiguous(statistics);
  const std::optional<Tensor> positives = as_doubles(pos_weight);
  const std::optional<Tensor> classes = as_doubles(class_weights);
  const Weights positive = weights_of(positives, p.channels, kDiceBceLoss, "pos_weight");
  const Weights weights = weights_of(classes, p.channels, kDiceBceLoss, "class_weights");
  const View inputs(logits, p.channels, p.pixels, channels_last);
  const View targets(labels, p.channels, p.pixels, target_last);
  const View grads(grad, p.channels, p.pixels, channels_last);
  Tensor grad_input = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), input.scalar_type(), input,
                                 channels_last);  // [N, C, H, W]
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  Tensor coefficients = empty_doubles(p.planes() * kCoefficients, input);
  const DeviceScope scope(input);
  const dim3 chunks(blocks_for(p.planes() * p.chunks, 1));
  Tensor partial = empty_doubles(map ? p.planes() * p.chunks : 0, input);
  Tensor sums = empty_doubles(map ? p.planes() : 0, input);
  if (map) {
    dispatch_floating(grad.scalar_type(), "dice_bce_loss_backward", [&]<typename scalar_t>() {
      launch(grad_sums_kernel<scalar_t>, chunks, kThreads, 0, scope.stream(), p, grads, targets, doubles(partial));
    });
    launch(plane_sums_kernel<1>, blocks_for(p.planes(), 1), kThreads, 0, scope.stream(), p.planes(), p.chunks,
           doubles(partial), doubles(sums));
  }
  const Tensor scale = map ? grad : as_doubles(grad);
  const Weights upstream = map ? Weights{} : Weights{static_cast<const double*>(scale.const_data_ptr()), false};
  launch(finish_kernel, 1, kThreads, 0, scope.stream(), p, doubles(totals), weights, upstream,
         map ? doubles(sums) : nullptr, doubles(coefficients), nullptr, false);
  dispatch_floating(input.scalar_type(), "dice_bce_loss_backward", [&]<typename scalar_t>() {
    launch(dice_bce_bwd_kernel<scalar_t>, chunks, kThreads, 0, scope.stream(), p, inputs, targets, positive,
           doubles(coefficients), grads, map, View(grad_input, p.channels, p.pixels, channels_last));
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("dice_bce_loss", TORCH_BOX(&dice_bce_loss_cuda));
  m.impl("dice_bce_loss_backward", TORCH_BOX(&dice_bce_loss_backward_cuda));
}

}  // namespace segkernels
