// Sums over softmax probabilities on the GPU, forward. Blocks sum pieces of a sample that depend on the shape alone;
// the pieces are then added up in their order, in float64.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "softmax_planes.cuh"
#include "softmax_upsampled.cuh"

namespace segkernels {
namespace {

std::tuple<Tensor, Tensor, Tensor> softmax_statistics_cuda(const Tensor& input,   // [N, C, h, w]
                                                           const Tensor& target,  // [N, H, W]
                                                           std::optional<Tensor> class_weights,
                                                           std::optional<int64_t> ignore_index, double label_smoothing,
                                                           double gamma, bool regions, bool losses,
                                                           bool align_corners) {
  const SoftmaxParams p = softmax_params(input, target, label_smoothing, gamma, regions, losses, align_corners);
  const bool channels_last = is_channels_last(input);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor truth = torch::stable::contiguous(target);
  const ScalarType compute = compute_type(input.scalar_type());
  const std::optional<Tensor> weights = weights_as(class_weights, p.classes, compute);
  const LabelBins labels(truth, kSoftmaxStatistics, p.classes, ignore_index);
  const int64_t region_size[] = {p.batch, regions ? p.classes : 0, kRegionSums};
  const int64_t pixel_size[] = {p.batch, kPixelSums};
  const int64_t losses_size[] = {p.batch, losses ? p.out_h : 0, losses ? p.out_w : 0};
  Tensor region = torch::stable::empty({region_size, 3}, ScalarType::Double, std::nullopt, input.device());
  Tensor pixel = torch::stable::empty({pixel_size, 2}, ScalarType::Double, std::nullopt, input.device());
  Tensor map = torch::stable::empty({losses_size, 3}, compute, std::nullopt, input.device());  // [N, H, W]
  const DeviceScope scope(input);
  dispatch_compute(compute, [&]<typename T>() {
    const ClassTable<T> table = class_table<T>(weights, nullptr);
    T* const to = static_cast<T*>(map.mutable_data_ptr());
    const auto sum = [&](int64_t pieces, const auto& run) {
      Tensor partial_region = empty_doubles(region.numel() * pieces, input);  // [N, C, pieces, 3]
      Tensor partial_pixel = empty_doubles(pixel.numel() * pieces, input);    // [N, pieces, 3]
      if (p.batch * pieces > 0) {
        run(blocks_for(p.batch * pieces, 1), doubles(partial_region), doubles(partial_pixel));
      }
      for (const auto& [from, result] : {std::pair(&partial_region, &region), std::pair(&partial_pixel, &pixel)}) {
        const int64_t planes = result->numel() / kRegionSums;
        launch(plane_sums_kernel<kRegionSums>, blocks_for(planes, 1), kThreads, 0, scope.stream(), planes, pieces,
               doubles(*from), doubles(*result));
      }
    };
    if (p.upsampled()) {
      const Intervals<T> intervals(p, channels_last);
      const Tensor values = as_staged(logits, intervals.staged, channels_last);
      sum(intervals.items(), [&](dim3 blocks, double* by_region, double* by_pixel) {
        launch(softmax_upsampled_fwd_kernel<T>, blocks, kThreads, shared_bytes(intervals), scope.stream(), p, intervals,
               labels, Logits(values), table, by_region, by_pixel, to);
      });
    } else {
      const PlaneTiles tiles(p, logits, channels_last, sizeof(T));
      const Tensor values = as_staged(logits, tiles.staged, channels_last);
      sum(tiles.chunks, [&](dim3 blocks, double* by_region, double* by_pixel) {
        launch(softmax_planes_fwd_kernel<T>, blocks, kThreads, tiles.shared(p, sizeof(T)), scope.stream(), p, tiles,
               labels, Logits(values), table, by_region, by_pixel, to);
      });
    }
  });
  return {region, pixel, map};
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("softmax_statistics", TORCH_BOX(&softmax_statistics_cuda));
}

}  // namespace segkernels
