// Non-maximum suppression. Fused multiply-adds would move overlaps across the threshold.
#pragma GCC optimize("fp-contract=off")

#include "../common/nms.h"

#include <torch/csrc/stable/library.h>

#include "suppress.h"

namespace segkernels {
namespace {

Tensor nms_cpu(const Tensor& boxes,   // [N, 4]
               const Tensor& scores,  // [N]
               double iou_threshold) {
  check_scored_boxes(boxes, scores, "nms");
  const int64_t count = boxes.size(0);
  const Tensor corners = to_coordinates(boxes, coordinate_type(boxes));
  const std::vector<int64_t> order = by_decreasing_score(scores);
  std::vector<uint8_t> keep(count);
  dispatch_compute(corners.scalar_type(), [&]<typename T>() {
    suppress(static_cast<const T*>(corners.const_data_ptr()), order.data(), count, iou_threshold, keep.data());
  });
  Tensor result = empty({std::count(keep.begin(), keep.end(), 1)}, ScalarType::Long, boxes);  // [K]
  std::copy_if(order.begin(), order.end(), static_cast<int64_t*>(result.mutable_data_ptr()),
               [&keep](int64_t i) { return keep[i] != 0; });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

}  // namespace segkernels
