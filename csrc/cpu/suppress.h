// Greedy non-maximum suppression of boxes in the order of their scores, for nms and batched_nms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../common/nms.h"
#include "../common/parallel.h"

namespace segkernels {

constexpr int64_t kNmsChunk = 64;  // kept boxes compared before looking whether one suppresses
// Candidates compared in parallel: few and large regions, since a core does 10,000 boxes in some 10 ms.
constexpr int64_t kNmsBlock = 4096;

// Whether any of kept[begin, ...) overlaps the box by more than the threshold; the columns end in a chunk of NaN.
template <typename T>
SEGKERNELS_CLONES bool overlaps_any(const BoxColumns<T>& kept, int64_t begin, int64_t end, const Box<T>& candidate,
                                    T threshold) {
  const Box<T> box = candidate;
  for (int64_t chunk = begin; chunk < end; chunk += kNmsChunk) {
    const T* x1 = kept.x1.data() + chunk;
    const T* y1 = kept.y1.data() + chunk;
    const T* x2 = kept.x2.data() + chunk;
    const T* y2 = kept.y2.data() + chunk;
    const T* area = kept.area.data() + chunk;
    int32_t hit = 0;
    for (int64_t k = 0; k < kNmsChunk; ++k) {
      hit |= intersection_over_union(box, Box<T>(x1[k], y1[k], x2[k], y2[k], area[k])) > threshold ? 1 : 0;
    }
    if (hit) {
      return true;
    }
  }
  return false;
}

// Positions by decreasing score; NaN first, and of equal scores the lower position, as torch's stable sort has it.
inline std::vector<int64_t> by_decreasing_score(const Tensor& scores) {
  const Tensor wide = to_coordinates(scores, ScalarType::Double);
  const double* values = static_cast<const double*>(wide.const_data_ptr());
  std::vector<int64_t> order(scores.size(0));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [values](int64_t a, int64_t b) {
    return values[a] > values[b] || (std::isnan(values[a]) && !std::isnan(values[b]));
  });
  return order;
}

// Sets keep[i] for the boxes that survive, out of order[0, count), which is sorted by decreasing score.
template <typename T>
void suppress(const T* boxes, const int64_t* order, int64_t count, double threshold, uint8_t* keep) {
  const T limit = threshold_below<T>(threshold);
  BoxColumns<T> candidates(count);
  for (int64_t i = 0; i < count; ++i) {
    candidates.set(i, Box<T>(boxes + 4 * order[i]));
  }
  BoxColumns<T> kept(count + kNmsChunk);
  int64_t kept_count = 0;
  uint8_t suppressed[kNmsBlock];
  for (int64_t block = 0; block < count; block += kNmsBlock) {
    const int64_t size = std::min(kNmsBlock, count - block);
    const int64_t before = kept_count;
    parallel_items(size, before / 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        suppressed[i] = overlaps_any(kept, 0, before, candidates.at(block + i), limit);
      }
    });
    for (int64_t i = 0; i < size; ++i) {
      if (!suppressed[i] && !overlaps_any(kept, before, kept_count, candidates.at(block + i), limit)) {
        kept.set(kept_count++, candidates.at(block + i));
        keep[order[block + i]] = 1;
      }
    }
  }
}

}  // namespace segkernels
