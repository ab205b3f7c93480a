// Non-maximum suppression. Fused multiply-adds would move overlaps across the threshold.
#pragma GCC optimize("fp-contract=off")

#include "../common/nms.h"

#include <torch/csrc/stable/library.h>

namespace segkernels {
namespace {

Tensor nms_cpu(const Tensor& boxes,   // [N, 4]
               const Tensor& scores,  // [N]
               double iou_threshold) {
  check_dim(boxes, 2, "nms", "boxes");
  check_boxes(boxes, "nms", "boxes");
  check_dim(scores, 1, "nms", "scores");
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(scores.size(0) == count, "nms: expected one score a box, got ", scores.size(0), " for ", count);
  const Tensor corners = to_coordinates(boxes, coordinate_type(boxes));
  const Tensor values = to_coordinates(scores, ScalarType::Double);
  const std::vector<int64_t> order = by_decreasing_score(static_cast<const double*>(values.const_data_ptr()), count);
  std::vector<uint8_t> keep(count);
  dispatch_coordinates(corners.scalar_type(), [&]<typename T>() {
    suppress(static_cast<const T*>(corners.const_data_ptr()), order.data(), count, iou_threshold, keep.data());
  });
  return kept_in_order(order, keep, boxes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

}  // namespace segkernels
