// Source coordinates of nearest-neighbour resampling: those of torch.nn.functional.interpolate.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "host_device.h"

namespace segkernels {

// One dimension of the resampling.
struct NearestAxis {
  int64_t in_size, out_size;
  float scale;  // source coordinates per output coordinate; float32 for every dtype, as in torch

  SEGKERNELS_HOST_DEVICE int64_t source(int64_t output) const {
    if (in_size == out_size) {
      return output;
    }
    if (out_size == 2 * in_size) {
      return output / 2;  // whatever the scale
    }
    const int64_t floor = static_cast<int64_t>(static_cast<float>(output) * scale);
    return floor < in_size - 1 ? floor : in_size - 1;
  }

  // How often each source coordinate is repeated, where all are alike, else 0.
  int64_t whole_factor() const {
    const int64_t factor = out_size / in_size;
    if (factor * in_size != out_size) {
      return 0;
    }
    for (int64_t output = 0; output < out_size; ++output) {
      if (source(output) != output / factor) {
        return 0;
      }
    }
    return factor;
  }
};

// `scale_factor` is the one that the caller gave instead of a size, which torch then uses in place of the sizes' ratio.
inline NearestAxis nearest_axis(int64_t in_size, int64_t out_size, std::optional<double> scale_factor) {
  const float scale = scale_factor && *scale_factor > 0 ? static_cast<float>(1.0 / *scale_factor)
                                                        : static_cast<float>(in_size) / static_cast<float>(out_size);
  return {in_size, out_size, scale};
}

}  // namespace segkernels
