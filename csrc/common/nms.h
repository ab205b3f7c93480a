// Greedy non-maximum suppression of boxes in the order of their scores, for nms and batched_nms on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "boxes.h"
#include "parallel.h"

namespace segkernels {

constexpr int64_t kNmsChunk = 64;  // kept boxes compared before looking whether one suppresses
// Candidates compared in parallel: few and large regions, since a core does 10,000 boxes in some 10 ms.
constexpr int64_t kNmsBlock = 4096;

// Whether any of kept[begin, ...) overlaps the box by more than the threshold; the columns end in a chunk of NaN.
template <typename T>
SEGKERNELS_CLONES bool overlaps_any(const BoxColumns<T>& kept, int64_t begin, int64_t end,
                                    const BoxColumns<T>& candidates, int64_t candidate, T threshold) {
  const T x1 = candidates.x1[candidate], y1 = candidates.y1[candidate], x2 = candidates.x2[candidate],
          y2 = candidates.y2[candidate], area = candidates.area[candidate];
  for (int64_t chunk = begin; chunk < end; chunk += kNmsChunk) {
    const T* kx1 = kept.x1.data() + chunk;
    const T* ky1 = kept.y1.data() + chunk;
    const T* kx2 = kept.x2.data() + chunk;
    const T* ky2 = kept.y2.data() + chunk;
    const T* karea = kept.area.data() + chunk;
    int32_t hit = 0;
    for (int64_t k = 0; k < kNmsChunk; ++k) {
      const T left = kx1[k] < x1 ? x1 : kx1[k];
      const T top = ky1[k] < y1 ? y1 : ky1[k];
      const T right = x2 < kx2[k] ? x2 : kx2[k];
      const T bottom = y2 < ky2[k] ? y2 : ky2[k];
      const T width = T(0) < right - left ? right - left : T(0);
      const T height = T(0) < bottom - top ? bottom - top : T(0);
      const T intersection = width * height;
      hit |= intersection / (karea[k] + area - intersection) > threshold ? 1 : 0;
    }
    if (hit) {
      return true;
    }
  }
  return false;
}

// The largest T not above the threshold: comparing with it is comparing with the threshold in float64.
template <typename T>
T threshold_below(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                                  : rounded;
}

// Positions by decreasing score; NaN first, and of equal scores the lower position, as torch's stable sort has it.
template <typename T>
std::vector<int64_t> by_decreasing_score(const T* scores, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [scores](int64_t a, int64_t b) {
    return scores[a] > scores[b] || (std::isnan(scores[a]) && !std::isnan(scores[b]));
  });
  return order;
}

// Sets keep[i] for the boxes that survive, out of order[0, count), which is sorted by decreasing score.
template <typename T>
void suppress(const T* boxes, const int64_t* order, int64_t count, double threshold, uint8_t* keep) {
  const T limit = threshold_below<T>(threshold);
  BoxColumns<T> candidates(count);
  for (int64_t i = 0; i < count; ++i) {
    candidates.set(i, boxes + 4 * order[i]);
  }
  BoxColumns<T> kept(count + kNmsChunk);
  int64_t kept_count = 0;
  uint8_t suppressed[kNmsBlock];
  for (int64_t block = 0; block < count; block += kNmsBlock) {
    const int64_t size = std::min(kNmsBlock, count - block);
    const int64_t before = kept_count;
    parallel_items(size, before / 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        suppressed[i] = overlaps_any(kept, 0, before, candidates, block + i, limit);
      }
    });
    for (int64_t i = 0; i < size; ++i) {
      if (!suppressed[i] && !overlaps_any(kept, before, kept_count, candidates, block + i, limit)) {
        kept.move(kept_count++, candidates, block + i);
        keep[order[block + i]] = 1;
      }
    }
  }
}

// The kept positions in the given order, int64 [K].
inline Tensor kept_in_order(const std::vector<int64_t>& order, const std::vector<uint8_t>& keep, const Tensor& like) {
  Tensor result = empty({std::count(keep.begin(), keep.end(), 1)}, ScalarType::Long, like);
  int64_t* out = static_cast<int64_t*>(result.mutable_data_ptr());
  for (const int64_t i : order) {
    if (keep[i]) {
      *out++ = i;
    }
  }
  return result;
}

}  // namespace segkernels
