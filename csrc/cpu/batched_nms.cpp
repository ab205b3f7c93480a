// Non-maximum suppression within each class. Fused multiply-adds would move overlaps across the threshold.
#pragma GCC optimize("fp-contract=off")

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/nms.h"
#include "suppress.h"

namespace segkernels {
namespace {

std::tuple<Tensor, Tensor> batched_nms_cpu(const Tensor& boxes,   // [N, 4]
                                           const Tensor& scores,  // [N]
                                           const Tensor& idxs,    // [N]
                                           double iou_threshold) {
  check_scored_boxes(boxes, scores, "batched_nms");
  check_classes(scores, idxs, "batched_nms");
  const int64_t count = boxes.size(0);
  const Tensor corners = to_coordinates(boxes, coordinate_type(boxes));
  const Tensor classes = to_dense(idxs, false);
  const int64_t* of_class = static_cast<const int64_t*>(classes.const_data_ptr());
  const std::vector<int64_t> by_score = by_decreasing_score(scores);
  // Class after class, each by decreasing score.
  std::vector<int64_t> grouped = by_score;
  std::stable_sort(grouped.begin(), grouped.end(),
                   [of_class](int64_t a, int64_t b) { return of_class[a] < of_class[b]; });
  std::vector<uint8_t> keep(count);
  dispatch_compute(corners.scalar_type(), [&]<typename T>() {
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      while (end < count && of_class[grouped[end]] == of_class[grouped[begin]]) {
        ++end;
      }
      suppress(static_cast<const T*>(corners.const_data_ptr()), grouped.data() + begin, end - begin, iou_threshold,
               keep.data());
    }
  });
  Tensor order = empty({count}, ScalarType::Long, boxes);  // [N]
  Tensor kept = empty({count}, ScalarType::Bool, boxes);   // [N]
  std::copy(by_score.begin(), by_score.end(), static_cast<int64_t*>(order.mutable_data_ptr()));
  std::transform(by_score.begin(), by_score.end(), static_cast<uint8_t*>(kept.mutable_data_ptr()),
                 [&keep](int64_t i) { return keep[i]; });
  return {order, kept};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
}

}  // namespace segkernels
