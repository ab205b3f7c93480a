// Lovasz hinge and Lovasz-softmax on the GPU: one stable sort of the errors of all classes by torch's own kernel, which
// takes most of the time, then a scan of integers over the ranks. The host waits for nothing and knows no class.
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "lovasz_loss.cuh"

namespace segkernels {
namespace {

LovaszParams make_params(const Tensor& input, int64_t errors, bool per_image, bool all_classes) {
  return {static_cast<Errors>(errors),   input.size(0), input.size(1), input.size(2) * input.size(3),
          per_image ? input.size(0) : 1, all_classes};
}

// Values and order of each row, largest and NaN first, equal ones in their order.
std::tuple<Tensor, Tensor> sort_rows(const Tensor& values) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t{-1}), from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> lovasz_loss_cuda(const Tensor& input,   // [N, C, H, W]
                                            const Tensor& target,  // as input for the hinge, else [N, H, W]
                                            int64_t errors, std::optional<int64_t> ignore_index, bool per_image,
                                            bool all_classes) {
  check_lovasz(input, target, errors, per_image);
  const LovaszParams p = make_params(input, errors, per_image, all_classes);
  const bool channels_last = !p.hinge() && is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor classes = to_dense(target, false);
  const ScalarType compute = compute_type(input.scalar_type());
  const auto empty = [&](std::initializer_list<int64_t> size, ScalarType dtype) {
    return torch::stable::empty({size.begin(), size.size()}, dtype, std::nullopt, input.device());
  };
  Tensor loss = empty({p.groups}, compute);
  Tensor slopes = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), compute, input, false);
  if (slopes.numel() == 0) {
    torch::stable::zero_(loss);
    return {loss, slopes};
  }
  Tensor labels = empty({p.groups * p.length()}, ScalarType::Int);
  Tensor wrong = empty({p.groups}, ScalarType::Int);
  torch::stable::zero_(wrong);
  Tensor unsorted = empty({p.segments(), p.length()}, compute);
  Tensor counts = empty_doubles(p.segments() * p.chunks(), input);
  Tensor partial = empty_doubles(p.segments() * p.chunks(), input);
  Tensor totals = empty_doubles(p.segments(), input);
  Tensor scales = empty_doubles(p.segments(), input);
  Tensor class_losses = empty_doubles(p.segments(), input);
  const DeviceScope scope(input);
  const dim3 chunks(blocks_for(p.segments() * p.chunks(), 1)), groups(blocks_for(p.groups, 1));
  const cudaStream_t stream = scope.stream();
  launch(lovasz_labels_kernel, blocks_for(labels.numel()), kThreads, 0, stream, p, classes.const_data_ptr(),
         target.scalar_type(), IgnoredTarget(ignore_index), data_of<int>(labels), data_of<int>(wrong));
  dispatch_compute(compute, [&]<typename T>() {
    if (p.hinge()) {
      launch(lovasz_hinge_kernel<T>, blocks_for(labels.numel()), kThreads, 0, stream, labels.numel(), Logits(values),
             data_of<int>(labels), data_of<T>(unsorted));
    } else {
      launch(lovasz_softmax_kernel<T>, blocks_for(labels.numel()), kThreads, 0, stream, p, Logits(values),
             channels_last, data_of<int>(labels), data_of<T>(unsorted));
    }
    auto [sorted, order] = sort_rows(unsorted);
    const int64_t* const ranks = data_of<int64_t>(order);
    launch(lovasz_count_kernel, chunks, kThreads, 0, stream, p, data_of<int>(labels), ranks, doubles(counts));
    launch(lovasz_before_kernel, blocks_for(p.segments(), 1), kThreads, 0, stream, p, doubles(counts), doubles(totals));
    launch(lovasz_scales_kernel, groups, kThreads, 0, stream, p, doubles(totals), data_of<int>(wrong), doubles(scales));
    launch(lovasz_slopes_kernel<T>, chunks, kThreads, 0, stream, p, data_of<int>(labels), data_of<T>(sorted), ranks,
           doubles(counts), doubles(totals), doubles(scales), doubles(partial), data_of<T>(slopes));
    launch(plane_sums_kernel<1>, blocks_for(p.segments(), 1), kThreads, 0, stream, p.segments(), p.chunks(),
           doubles(partial), doubles(class_losses));
    launch(lovasz_finish_kernel<T>, groups, kThreads, 0, stream, p, doubles(class_losses), doubles(scales),
           data_of<T>(loss));
  });
  return {loss, slopes};
}

Tensor lovasz_loss_backward_cuda(const Tensor& grad_output,  // [groups]
                                 const Tensor& input,        // [N, C, H, W]
                                 const Tensor& slopes,       // [N, C, H, W]
                                 int64_t errors, bool per_image) {
  const LovaszParams p = make_params(input, errors, per_image, false);
  check_lovasz_gradient(grad_output, input, slopes, p.groups);
  const bool channels_last = is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor steps = to_dense(slopes, false);
  const Tensor grad = torch::stable::contiguous(grad_output);
  Tensor grad_input = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), input.scalar_type(), input,
                                 channels_last);  // [N, C, H, W]
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  const DeviceScope scope(input);
  dispatch_compute(slopes.scalar_type(), [&]<typename T>() {
    launch(lovasz_bwd_kernel<T>, blocks_for(p.batch * p.pixels), kThreads, 0, scope.stream(), p,
           static_cast<const T*>(grad.const_data_ptr()), Logits(values), channels_last,
           static_cast<const T*>(steps.const_data_ptr()), Logits(grad_input));
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("lovasz_loss", TORCH_BOX(&lovasz_loss_cuda));
  m.impl("lovasz_loss_backward", TORCH_BOX(&lovasz_loss_backward_cuda));
}

}  // namespace segkernels
