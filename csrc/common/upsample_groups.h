// Outputs of a resampling grouped by the source at or after which they read.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace segkernels {

// The first output whose tap begins at `source` or later: outputs [first_output(x), first_output(x + 1)) give their low
// weight to source x and their high weight to source x + 1.
template <typename Axis>
SEGKERNELS_HOST_DEVICE int first_output(const Axis& axis, int64_t source) {
  int64_t begin = 0, end = source > 0 ? axis.out_size : 0;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (axis.tap(middle).low < source) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return static_cast<int>(begin);
}

}  // namespace segkernels
