// Which parts of a dense convolution run as products over shifted maps (shifted_products.h) and not as torch's kernel.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "../common/conv2d.h"

namespace segkernels {

// Keeps the size with one dilation: one rate of multi_dilation_conv2d.
inline bool is_rate(const Conv2dParams& p) {
  const auto keeps = [&](int64_t kernel, int64_t pad) { return kernel % 2 == 1 && pad == p.dilation_h * (kernel / 2); };
  return p.groups == 1 && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == p.dilation_w &&
         keeps(p.kernel_h, p.pad_h) && keeps(p.kernel_w, p.pad_w);
}

// The share of the products whose tap lies inside of the map.
inline double share_inside(const Conv2dParams& p) {
  const auto axis = [&](int64_t size, int64_t kernel) {
    int64_t inside = 0;
    for (int64_t tap = 0; tap < kernel; ++tap) {
      inside += std::max<int64_t>(0, size - std::abs(tap - kernel / 2) * p.dilation_h);
    }
    return static_cast<double>(inside) / static_cast<double>(kernel * size);
  };
  return axis(p.in_h, p.kernel_h) * axis(p.in_w, p.kernel_w);
}

struct ProductsWin {
  bool forward, grad_input, grad_weight;
};

// The measurement over 3x3 kernels in float32, 32 to 2048 channels, maps of 4 to 128 and dilations of 1 to 36, on one
// core against torch's kernel in the same memory format.
inline ProductsWin products_win(const Conv2dParams& p, ScalarType dtype, bool channels_last) {
  if (dtype != ScalarType::Float || p.taps() == 1 || p.in_channels < 32 || !is_rate(p)) {
    return {false, false, false};
  }
  const double inside = share_inside(p);
  const int64_t plane = p.in_h * p.in_w;
  if (!channels_last) {
    // Torch multiplies the padding too: 1.1 to 2.6 times at large dilations. At small ones it is as fast, and on small
    // maps that begins later (two cores, 512 channels, dilation 4: 0.82 to 0.95 times on 11x11 to 16x16, 1.2 on 20x20).
    const bool wide = p.dilation_h >= (plane < 18 * 18 ? 6 : 4);
    return {wide && inside < 0.95, wide && inside < 0.9, wide && inside < 0.9};
  }
  // Torch leaves the padding out as well. Its forward takes 1.0 to 1.9 times as long where maps are small beside their
  // channels, its gradient of the weights 1.1 to 2.9 times nearly everywhere.
  const auto deep = [&](int64_t channels) {
    return (channels >= 256 && plane <= 17 * 17) || (channels >= 512 && inside < 0.6);
  };
  const bool grad_weight = p.taps() <= 9 && p.out_channels >= 32 && p.in_channels >= (p.dilation_h >= 4 ? 64 : 128);
  return {deep(p.in_channels), deep(p.out_channels), grad_weight};
}

}  // namespace segkernels
