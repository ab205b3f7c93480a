// Source coordinates of bilinear resampling: those of torch.nn.functional.interpolate.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "host_device.h"

namespace segkernels {

// An output coordinate reads source[low] * low_weight + source[high] * high_weight.
template <typename acc_t>
struct BilinearTap {
  int64_t low, high;
  acc_t low_weight, high_weight;
};

// One dimension of the resampling.
template <typename acc_t>
struct BilinearAxis {
  int64_t in_size, out_size;
  acc_t scale;  // source coordinates per output coordinate
  bool align_corners;

  SEGKERNELS_HOST_DEVICE acc_t source(int64_t output) const {
    const acc_t position = static_cast<acc_t>(output);
    // Fused as in torch's kernels: where a coordinate falls on a pixel, rounding decides which neighbours it reads.
    const acc_t coordinate = align_corners ? scale * position : std::fma(scale, position + acc_t(0.5), acc_t(-0.5));
    return coordinate > acc_t(0) ? coordinate : acc_t(0);
  }

  SEGKERNELS_HOST_DEVICE BilinearTap<acc_t> tap(int64_t output) const {
    if (in_size == out_size) {
      return {output, output, acc_t(1), acc_t(0)};
    }
    const acc_t coordinate = source(output);
    const int64_t floor = static_cast<int64_t>(coordinate);
    const int64_t low = floor < in_size - 1 ? floor : in_size - 1;
    const acc_t fraction = coordinate - static_cast<acc_t>(low);
    const acc_t weight = fraction < acc_t(1) ? fraction : acc_t(1);
    return {low, low < in_size - 1 ? low + 1 : low, acc_t(1) - weight, weight};
  }
};

// `scale_factor` is the one that the caller gave instead of a size, which torch then uses in place of the sizes' ratio.
template <typename acc_t>
BilinearAxis<acc_t> bilinear_axis(int64_t in_size, int64_t out_size, bool align_corners = false,
                                  std::optional<double> scale_factor = std::nullopt) {
  acc_t scale;
  if (align_corners) {
    scale = out_size > 1 ? static_cast<acc_t>(in_size - 1) / static_cast<acc_t>(out_size - 1) : acc_t(0);
  } else if (scale_factor && *scale_factor > 0) {
    scale = static_cast<acc_t>(1.0 / *scale_factor);
  } else {
    scale = static_cast<acc_t>(in_size) / static_cast<acc_t>(out_size);
  }
  return {in_size, out_size, scale, align_corners};
}

}  // namespace segkernels
