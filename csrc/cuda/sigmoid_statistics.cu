// Sums over sigmoid probabilities on the GPU and their gradient. Blocks sum pieces of a plane that depend on the shape
// alone; the pieces are then added up in their order, in float64.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "sigmoid_statistics.cuh"

namespace segkernels {
namespace {

SigmoidParams make_params(const Tensor& input, const Tensor& target, double negative, double gamma,
                          std::optional<int64_t> ignore_index, bool min_intersection, bool losses) {
  check_sigmoid(input, target, gamma);
  const ScalarType labels = target.scalar_type();
  STD_TORCH_CHECK(is_floating(input.scalar_type()), kSigmoidStatistics,
                  ": expected input of float32, float64, float16 or bfloat16, got ", input.scalar_type());
  STD_TORCH_CHECK(is_floating(labels) || labels == ScalarType::Byte || labels == ScalarType::Bool ||
                      labels == ScalarType::Int || labels == ScalarType::Long,
                  kSigmoidStatistics, ": expected target of uint8, bool, int32, int64 or a floating type, got ",
                  labels);
  return {target.size(0), target.size(1), target.size(2) * target.size(3), target.size(3),
          negative,       gamma,          IgnoredTarget(ignore_index),     min_intersection,
          losses};
}

bool upsamples(const Tensor& input, const Tensor& target) {
  return target.numel() > 0 && (input.size(2) != target.size(2) || input.size(3) != target.size(3));
}

template <typename T>
IntervalGrid<T> interval_grid(const Tensor& input, const Tensor& target, bool align_corners) {
  return {input.size(2), input.size(3), target.size(2), target.size(3), align_corners, kThreads, kMaxIntervals};
}

View view_of(const Tensor& tensor, bool channels_last) {
  return {tensor, tensor.size(1), tensor.size(2) * tensor.size(3), channels_last};
}

std::tuple<Tensor, Tensor, Tensor> sigmoid_statistics_cuda(const Tensor& input,   // [N, C, h, w]
                                                           const Tensor& target,  // [N, C, H, W]
                                                           std::optional<Tensor> positive, double negative,
                                                           double gamma, std::optional<int64_t> ignore_index,
                                                           bool min_intersection, bool losses, bool align_corners) {
  const SigmoidParams p = make_params(input, target, negative, gamma, ignore_index, min_intersection, losses);
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const std::optional<Tensor> positives = as_doubles(positive);
  const Weights weights = weights_of(positives, p.channels, kSigmoidStatistics, "positive");
  const ScalarType compute = compute_type(input.scalar_type());
  const int64_t region_size[] = {p.batch, p.channels, kSigmoidRegion};
  const int64_t pixel_size[] = {p.batch, p.channels, kSigmoidPixel};
  Tensor region = torch::stable::empty({region_size, 3}, ScalarType::Double, std::nullopt, input.device());
  Tensor pixel = torch::stable::empty({pixel_size, 3}, ScalarType::Double, std::nullopt, input.device());
  Tensor map =
      empty_nchw(p.batch, p.channels, losses ? target.size(2) : 0, losses ? target.size(3) : 0, compute, input, false);
  const View inputs = view_of(logits, channels_last), targets = view_of(labels, target_last);
  const DeviceScope scope(input);
  dispatch_compute(compute, [&]<typename T>() {
    const bool upsampled = upsamples(input, target);
    int64_t pieces = (p.pixels + kChunkPixels - 1) / kChunkPixels;
    if (upsampled) {
      pieces = interval_grid<T>(input, target, align_corners).items();
    }
    Tensor partial_region = empty_doubles(region.numel() * pieces, input);
    Tensor partial_pixel = empty_doubles(pixel.numel() * pieces, input);
    const dim3 blocks(blocks_for(p.planes() * pieces, 1));
    if (upsampled) {
      View single = targets;
      single.wide = false;
      launch(sigmoid_upsampled_fwd_kernel<T>, blocks, kThreads, 0, scope.stream(), p,
             interval_grid<T>(input, target, align_corners), inputs, single, weights, doubles(partial_region),
             doubles(partial_pixel), static_cast<T*>(map.mutable_data_ptr()));
    } else {
      launch(sigmoid_fwd_kernel<T>, blocks, kThreads, 0, scope.stream(), p, pieces, inputs, targets, weights,
             doubles(partial_region), doubles(partial_pixel), view_of(map, false));
    }
    launch(plane_sums_kernel<kSigmoidRegion>, blocks_for(p.planes(), 1), kThreads, 0, scope.stream(), p.planes(),
           pieces, doubles(partial_region), doubles(region));
    launch(plane_sums_kernel<kSigmoidPixel>, blocks_for(p.planes(), 1), kThreads, 0, scope.stream(), p.planes(), pieces,
           doubles(partial_pixel), doubles(pixel));
  });
  return {region, pixel, map};
}

Tensor sigmoid_statistics_backward_cuda(const Tensor& grad_region,  // [N, C, 3]
                                        const Tensor& grad_pixel,   // [N, C, 2]
                                        const Tensor& grad_losses,  // [N, C, H, W], used with `losses`
                                        const Tensor& input,        // [N, C, h, w]
                                        const Tensor& target,       // [N, C, H, W]
                                        std::optional<Tensor> positive, double negative, double gamma,
                                        std::optional<int64_t> ignore_index, bool min_intersection, bool losses,
                                        bool align_corners) {
  const SigmoidParams p = make_params(input, target, negative, gamma, ignore_index, min_intersection, losses);
  check_sigmoid_gradients(grad_region, grad_pixel, grad_losses, target, losses);
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const ScalarType compute = compute_type(input.scalar_type());
  const Tensor map = to_dense(torch::stable::to(grad_losses, compute), false);
  Tensor by_region = torch::stable::contiguous(grad_region);
  Tensor by_pixel = torch::stable::contiguous(grad_pixel);
  const std::optional<Tensor> positives = as_doubles(positive);
  const Weights weights = weights_of(positives, p.channels, kSigmoidStatistics, "positive");
  Tensor grad_input = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), input.scalar_type(), input,
                                 channels_last);  // [N, C, h, w]
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  const View inputs = view_of(logits, channels_last), targets = view_of(labels, target_last);
  const DeviceScope scope(input);
  dispatch_compute(compute, [&]<typename T>() {
    if (!upsamples(input, target)) {
      const int64_t chunks = (p.pixels + kChunkPixels - 1) / kChunkPixels;
      launch(sigmoid_bwd_kernel<T>, blocks_for(p.planes() * chunks, 1), kThreads, 0, scope.stream(), p, chunks, inputs,
             targets, weights, doubles(by_region), doubles(by_pixel), View(map, p.channels, p.pixels, false),
             view_of(grad_input, channels_last));
      return;
    }
    const IntervalGrid<T> grid = interval_grid<T>(input, target, align_corners);
    const int64_t size = p.planes() * grid.items() * 2 * (grid.width + 1);
    Tensor partial = torch::stable::empty({&size, 1}, compute, std::nullopt, input.device());
    View single = targets;
    single.wide = false;
    launch(sigmoid_upsampled_bwd_kernel<T>, blocks_for(p.planes() * grid.items(), 1), kThreads, 0, scope.stream(), p,
           grid, inputs, single, weights, doubles(by_region), doubles(by_pixel),
           static_cast<const T*>(map.const_data_ptr()), static_cast<T*>(partial.mutable_data_ptr()));
    launch(gather_intervals_kernel<T>, blocks_for(grad_input.numel()), kThreads, 0, scope.stream(), grid, p.batch,
           p.channels, channels_last && p.channels > 1, static_cast<const T*>(partial.const_data_ptr()),
           Logits(grad_input));
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("sigmoid_statistics", TORCH_BOX(&sigmoid_statistics_cuda));
  m.impl("sigmoid_statistics_backward", TORCH_BOX(&sigmoid_statistics_backward_cuda));
}

}  // namespace segkernels
