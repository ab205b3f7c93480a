// Counts pairs of small integers: the CPU's confusion matrices and overlap tables. One histogram belongs to one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

namespace segkernels {

// One more in each of eight bins. Label maps are runs of one pair, and an increment that waits for the previous one's
// store takes several cycles: eight equal bins are one addition.
SEGKERNELS_INLINE void count_eight(const int32_t* bins, int64_t* counts) {
  uint64_t pairs[4];
  std::memcpy(pairs, bins, sizeof(pairs));
  const uint64_t differ = (pairs[0] ^ pairs[1]) | (pairs[2] ^ pairs[3]) | (pairs[0] ^ pairs[2]);
  const uint64_t first = static_cast<uint32_t>(pairs[0]);
  if ((differ | (first ^ pairs[0] >> 32)) == 0) {
    counts[first] += 8;
    return;
  }
  for (const uint64_t pair : pairs) {
    ++counts[static_cast<uint32_t>(pair)];
    ++counts[pair >> 32];
  }
}

SEGKERNELS_CLONES inline void joint_bins(const int32_t* rows, const int32_t* cols, int64_t count, int32_t width,
                                         int32_t* bins) {
  for (int64_t i = 0; i < count; ++i) {
    bins[i] = rows[i] * width + cols[i];
  }
}

class JointHistogram {
 public:
  JointHistogram(int64_t height, int64_t width) : width_(width), counts_(height * width) {}

  // One more for each (rows[i], cols[i]); they must lie in [0, height) and [0, width).
  void add(const int32_t* rows, const int32_t* cols, int64_t count) {
    if (!narrow()) {
      for (int64_t i = 0; i < count; ++i) {
        ++counts_[rows[i] * width_ + cols[i]];
      }
      return;
    }
    int32_t bins[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t block = std::min(kBlock, count - start);
      joint_bins(rows + start, cols + start, block, static_cast<int32_t>(width_), bins);
      int64_t i = 0;
      for (; i + 8 <= block; i += 8) {
        count_eight(bins + i, counts_.data());
      }
      for (; i < block; ++i) {
        ++counts_[bins[i]];
      }
    }
  }

  // Whether row * width + col fits 32 bits.
  bool narrow() const {
    return static_cast<int64_t>(counts_.size()) <= INT32_MAX;
  }
  int64_t* counts() {  // [height, width]
    return counts_.data();
  }

 private:
  static constexpr int64_t kBlock = 256;

  int64_t width_;
  std::vector<int64_t> counts_;
};

}  // namespace segkernels
