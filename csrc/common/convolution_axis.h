// One dimension of a convolution, or of its transpose: which source position a tap brings to a position.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_device.h"

namespace segkernels {

template <typename index_t>
struct ConvolutionAxis {
  index_t source, dest;
  index_t kernel, stride, pad, dilation;
  bool transposed;

  // Where `tap` of `position` reads, maybe outside of the source; false where it falls between two source positions.
  SEGKERNELS_HOST_DEVICE bool place(index_t position, index_t tap, index_t& at) const {
    if (!transposed) {
      at = position * stride + tap * dilation - pad;
      return true;
    }
    at = position + pad - tap * dilation;
    if (stride == 1) {
      return true;
    }
    const index_t whole = at / stride;
    const bool found = whole * stride == at;
    at = whole;
    return found;
  }
  // The source position that `tap` brings to `position`; -1 when there is none.
  SEGKERNELS_HOST_DEVICE index_t feed(index_t position, index_t tap) const {
    index_t at;
    return place(position, tap, at) && at >= 0 && at < source ? at : -1;
  }
  // The taps of one position lie within this many source positions.
  index_t reach() const {
    return std::min((kernel - 1) * dilation / (transposed ? stride : 1) + 1, std::max<index_t>(1, source));
  }
};

}  // namespace segkernels
