// Non-maximum suppression on the GPU; see suppress.cuh.
#include <torch/csrc/stable/library.h>

#include "suppress.cuh"

namespace segkernels {
namespace {

Tensor nms_cuda(const Tensor& boxes,   // [N, 4]
                const Tensor& scores,  // [N]
                double iou_threshold) {
  check_scored_boxes(boxes, scores, "nms");
  const auto [order, kept] = suppress(boxes, scores, nullptr, iou_threshold, "nms");
  return masked_select(order, kept);
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}

}  // namespace segkernels
