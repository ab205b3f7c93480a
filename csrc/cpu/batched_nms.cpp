// Non-maximum suppression within each class. Fused multiply-adds would move overlaps across the threshold.
#pragma GCC optimize("fp-contract=off")

#include <torch/csrc/stable/library.h>

#include "../common/nms.h"

namespace segkernels {
namespace {

Tensor batched_nms_cpu(const Tensor& boxes,   // [N, 4]
                       const Tensor& scores,  // [N]
                       const Tensor& idxs,    // [N]
                       double iou_threshold) {
  check_dim(boxes, 2, "batched_nms", "boxes");
  check_boxes(boxes, "batched_nms", "boxes");
  check_dim(scores, 1, "batched_nms", "scores");
  check_same_shape(scores, idxs, "batched_nms", "scores", "idxs");
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(scores.size(0) == count, "batched_nms: expected one score a box, got ", scores.size(0), " for ",
                  count);
  STD_TORCH_CHECK(idxs.scalar_type() == ScalarType::Long, "batched_nms: expected int64 idxs, got ", idxs.scalar_type());
  const Tensor corners = to_coordinates(boxes, coordinate_type(boxes));
  const Tensor values = to_coordinates(scores, ScalarType::Double);
  const Tensor classes = to_dense(idxs, false);
  const int64_t* of_class = static_cast<const int64_t*>(classes.const_data_ptr());
  const std::vector<int64_t> order = by_decreasing_score(static_cast<const double*>(values.const_data_ptr()), count);
  // Class after class, each by decreasing score.
  std::vector<int64_t> grouped = order;
  std::stable_sort(grouped.begin(), grouped.end(),
                   [of_class](int64_t a, int64_t b) { return of_class[a] < of_class[b]; });
  std::vector<uint8_t> keep(count);
  dispatch_coordinates(corners.scalar_type(), [&]<typename T>() {
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      while (end < count && of_class[grouped[end]] == of_class[grouped[begin]]) {
        ++end;
      }
      suppress(static_cast<const T*>(corners.const_data_ptr()), grouped.data() + begin, end - begin, iou_threshold,
               keep.data());
    }
  });
  return kept_in_order(order, keep, boxes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
}

}  // namespace segkernels
