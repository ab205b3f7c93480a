// Which pixels a bin of RoI pooling covers: maths that the CPU and the CUDA kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "roi_align.h"

namespace segkernels {

constexpr double kRoundedLimit = 1073741824;  // rounded coordinates beyond it are outside of every map

template <typename T>
SEGKERNELS_HOST_DEVICE int64_t rounded_coordinate(T value) {
  const double wide = static_cast<double>(value);
  if (!(wide == wide)) {
    return 0;
  }
  return static_cast<int64_t>(
      std::round(wide < -kRoundedLimit ? -kRoundedLimit : (wide > kRoundedLimit ? kRoundedLimit : wide)));
}

struct PixelRange {
  int64_t begin, end;
};

// One axis of a box.
template <typename T>
struct PoolAxis {
  int64_t start;
  T bin;

  SEGKERNELS_HOST_DEVICE PoolAxis(T low, T high, T scale, int64_t bins) {
    start = rounded_coordinate(low * scale);
    const int64_t extent = rounded_coordinate(high * scale) - start + 1;
    bin = static_cast<T>(extent > 1 ? extent : 1) / static_cast<T>(bins);
  }

  // Pixels of bin b that lie in a map of `size`.
  SEGKERNELS_HOST_DEVICE PixelRange pixels(int64_t b, int64_t size) const {
    const int64_t begin = static_cast<int64_t>(std::floor(static_cast<T>(b) * bin)) + start;
    const int64_t end = static_cast<int64_t>(std::ceil(static_cast<T>(b + 1) * bin)) + start;
    return {begin < 0 ? 0 : (begin > size ? size : begin), end < 0 ? 0 : (end > size ? size : end)};
  }
};

}  // namespace segkernels
