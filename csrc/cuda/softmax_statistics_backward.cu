// Gradient of the sums over softmax probabilities on the GPU: probabilities are computed again from the logits, and the
// gradient is written once.
#include <torch/csrc/stable/library.h>

#include "softmax_planes.cuh"
#include "softmax_upsampled.cuh"

namespace segkernels {
namespace {

Tensor softmax_statistics_backward_cuda(const Tensor& grad_region,  // [N, C, 3]
                                        const Tensor& grad_pixel,   // [N, 3]
                                        const Tensor& grad_losses,  // [N, H, W]
                                        const Tensor& input,        // [N, C, h, w]
                                        const Tensor& target,       // [N, H, W]
                                        std::optional<Tensor> class_weights, std::optional<int64_t> ignore_index,
                                        double label_smoothing, double gamma, bool regions, bool losses,
                                        bool align_corners) {
  const SoftmaxParams p = softmax_params(input, target, label_smoothing, gamma, regions, losses, align_corners);
  check_softmax_gradients(grad_region, grad_pixel, grad_losses, input, target, regions, losses);
  const bool channels_last = is_channels_last(input);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor truth = torch::stable::contiguous(target);
  const ScalarType compute = compute_type(input.scalar_type());
  const std::optional<Tensor> weights = weights_as(class_weights, p.classes, compute);
  const Tensor region = torch::stable::contiguous(torch::stable::to(grad_region, compute));
  const Tensor pixel = torch::stable::contiguous(torch::stable::to(grad_pixel, compute));
  const Tensor map = torch::stable::contiguous(grad_losses);
  const LabelBins labels(truth, kSoftmaxStatistics, p.classes, ignore_index);
  Tensor grad_input =
      empty_nchw(p.batch, p.classes, p.in_h, p.in_w, input.scalar_type(), input, channels_last);  // [N, C, h, w]
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  const DeviceScope scope(input);
  dispatch_compute(compute, [&]<typename T>() {
    const ClassTable<T> table = class_table<T>(weights, regions ? &region : nullptr);
    const T* const by_pixel = static_cast<const T*>(pixel.const_data_ptr());
    const T* const by_loss = static_cast<const T*>(map.const_data_ptr());
    if (!p.upsampled()) {
      const PlaneTiles tiles(p, logits, channels_last, sizeof(T));
      const Tensor values = as_staged(logits, tiles.staged, channels_last);
      const int64_t blocks = p.batch * ((p.pixels() + tiles.pixels - 1) / tiles.pixels);
      launch(softmax_planes_bwd_kernel<T>, blocks_for(blocks, 1), kThreads, tiles.shared(p, sizeof(T)), scope.stream(),
             p, tiles, labels, Logits(values), table, by_pixel, by_loss, Logits(grad_input));
      return;
    }
    const Intervals<T> intervals(p, channels_last);
    const Tensor values = as_staged(logits, intervals.staged, channels_last);
    const int64_t items = p.batch * intervals.items();
    const int64_t size = items * 2 * (intervals.width + 1) * p.classes;
    Tensor partial = torch::stable::empty({&size, 1}, compute, std::nullopt, input.device());
    T* const parts = static_cast<T*>(partial.mutable_data_ptr());
    launch(softmax_upsampled_bwd_kernel<T>, blocks_for(items, 1), kThreads, shared_bytes(intervals), scope.stream(), p,
           intervals, labels, Logits(values), table, by_pixel, by_loss, parts);
    launch(gather_intervals_kernel<T>, blocks_for(grad_input.numel()), kThreads, 0, scope.stream(), intervals, p.batch,
           p.classes, intervals.channels_last, parts, Logits(grad_input));
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("softmax_statistics_backward", TORCH_BOX(&softmax_statistics_backward_cuda));
}

}  // namespace segkernels
