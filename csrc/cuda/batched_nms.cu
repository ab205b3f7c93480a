// Non-maximum suppression within each class on the GPU; see suppress.cuh.
#include <torch/csrc/stable/library.h>

#include "suppress.cuh"

namespace segkernels {
namespace {

std::tuple<Tensor, Tensor> batched_nms_cuda(const Tensor& boxes,   // [N, 4]
                                            const Tensor& scores,  // [N]
                                            const Tensor& idxs,    // [N]
                                            double iou_threshold) {
  check_scored_boxes(boxes, scores, "batched_nms");
  check_classes(scores, idxs, "batched_nms");
  return suppress(boxes, scores, &idxs, iou_threshold, "batched_nms");
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cuda));
}

}  // namespace segkernels
