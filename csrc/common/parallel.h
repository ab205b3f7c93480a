// CPU threads. Nothing called inside may throw (see check.h); report through an error flag instead.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace segkernels {

// Elements that are worth a thread of their own; below it a loop stays on the calling thread.
constexpr int64_t kGrainElements = 16384;

// Runs f(begin, end) over [0, count), where one item costs about `elements_per_item` elements of memory traffic.
template <typename F>
void parallel_items(int64_t count, int64_t elements_per_item, const F& f) {
  if (count <= 0) {
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_item));
  if (count <= grain) {
    f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace segkernels
