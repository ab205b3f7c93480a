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

// Place of each pair in a table that is kept kHistogramCopies times.
SEGKERNELS_CLONES inline void histogram_slots(const int32_t* rows, const int32_t* cols, int64_t count, int32_t width,
                                              int32_t* slots) {
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = (rows[i] * width + cols[i]) * static_cast<int32_t>(kHistogramCopies);
  }
}

class JointHistogram {
 public:
  JointHistogram(int64_t height, int64_t width)
      : width_(width),
        copies_(height * width <= kReplicatedBins ? kHistogramCopies : 1),
        counts_(height * width * copies_),
        totals_(height * width) {}

  // One more for each (rows[i], cols[i]); they must lie in [0, height) and [0, width).
  void add(const int32_t* rows, const int32_t* cols, int64_t count) {
    for (int64_t start = 0; start < count; start += kBlock) {
      add_block(rows + start, cols + start, std::min(kBlock, count - start));
    }
  }

  // Counts since the construction, [height, width].
  const int64_t* totals() {
    flush();
    return totals_.data();
  }

 private:
  static constexpr int64_t kBlock = 256;

  void add_block(const int32_t* rows, const int32_t* cols, int64_t count) {
    pending_ += count;
    if (pending_ > UINT32_MAX) {
      flush();
      pending_ = count;
    }
    uint32_t* counts = counts_.data();
    if (copies_ == 1) {
      for (int64_t i = 0; i < count; ++i) {
        ++counts[rows[i] * width_ + cols[i]];
      }
      return;
    }
    int32_t slots[kBlock];
    histogram_slots(rows, cols, count, static_cast<int32_t>(width_), slots);
    int64_t i = 0;
    for (; i + kHistogramCopies <= count; i += kHistogramCopies) {
      for (int64_t k = 0; k < kHistogramCopies; ++k) {
        ++counts[slots[i + k] + k];
      }
    }
    for (; i < count; ++i) {
      ++counts[slots[i]];
    }
  }

  void flush() {
    const uint32_t* counts = counts_.data();
    for (int64_t& total : totals_) {
      for (int64_t k = 0; k < copies_; ++k) {
        total += *counts++;
      }
    }
    std::fill(counts_.begin(), counts_.end(), 0);
  }

  int64_t width_, copies_;
  std::vector<uint32_t> counts_;  // [height, width, copies]: 32 bits, so that more of the table stays in L1
  std::vector<int64_t> totals_;   // [height, width]: what was flushed before a count could overflow
  int64_t pending_ = 0;
};

}  // namespace segkernels
