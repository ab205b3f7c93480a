// Counts pairs of small integers: the CPU's confusion matrices and overlap tables. One histogram belongs to one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace segkernels {

// Neighbouring pixels tend to fall into one bin, and an increment that waits for the previous one's store takes several
// cycles: small tables are kept four times, side by side in a cache line, and summed at the end.
constexpr int64_t kHistogramCopies = 4;
constexpr int64_t kReplicatedBins = 4096;

// Bin of each pair, times the copies; the caller sees to it that it fits.
SEGKERNELS_CLONES inline void histogram_slots(const int32_t* rows, const int32_t* cols, int64_t count, int32_t width,
                                              int32_t* slots) {
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = (rows[i] * width + cols[i]) * static_cast<int32_t>(kHistogramCopies);
  }
}

class JointHistogram {
 public:
  JointHistogram(int64_t height, int64_t width)
      : height_(height), width_(width), copies_(height * width <= kReplicatedBins ? kHistogramCopies : 1) {
    counts_.assign(height_ * width_ * copies_, 0);
  }

  // One more for each (rows[i], cols[i]); they must lie in [0, height) and [0, width).
  void add(const int32_t* rows, const int32_t* cols, int64_t count) {
    int64_t* counts = counts_.data();
    if (copies_ == 1) {
      for (int64_t i = 0; i < count; ++i) {
        ++counts[rows[i] * width_ + cols[i]];
      }
      return;
    }
    int32_t slots[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t block = std::min(kBlock, count - start);
      histogram_slots(rows + start, cols + start, block, static_cast<int32_t>(width_), slots);
      int64_t i = 0;
      for (; i + kHistogramCopies <= block; i += kHistogramCopies) {
        for (int64_t k = 0; k < kHistogramCopies; ++k) {
          ++counts[slots[i + k] + k];
        }
      }
      for (; i < block; ++i) {
        ++counts[slots[i]];
      }
    }
  }

  int64_t total(int64_t row, int64_t col) const {
    const int64_t* counts = counts_.data() + (row * width_ + col) * copies_;
    int64_t sum = 0;
    for (int64_t k = 0; k < copies_; ++k) {
      sum += counts[k];
    }
    return sum;
  }

 private:
  static constexpr int64_t kBlock = 512;

  int64_t height_, width_, copies_;
  std::vector<int64_t> counts_;  // [height, width, copies]
};

}  // namespace segkernels
