// Source coordinates of bilinear upsampling: those of torch.nn.functional.interpolate.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace segkernels {

// An output coordinate reads source[low] * low_weight + source[high] * high_weight.
template <typename acc_t>
struct BilinearTap {
  int64_t low, high;
  acc_t low_weight, high_weight;
};

template <typename acc_t>
inline BilinearTap<acc_t> bilinear_tap(int64_t output, int64_t in_size, int64_t out_size) {
  const acc_t scale = static_cast<acc_t>(in_size) / static_cast<acc_t>(out_size);
  // Fused as in torch's kernels: where a coordinate falls on a pixel, rounding decides which neighbours it reads.
  const acc_t source = std::max(acc_t(0), std::fma(scale, static_cast<acc_t>(output) + acc_t(0.5), acc_t(-0.5)));
  const int64_t low = std::min(static_cast<int64_t>(source), in_size - 1);
  const acc_t weight = std::min(source - static_cast<acc_t>(low), acc_t(1));
  return {low, std::min(low + 1, in_size - 1), acc_t(1) - weight, weight};
}

template <typename acc_t>
inline BilinearTap<acc_t> bilinear_tap(int64_t output, int64_t in_size, int64_t out_size, bool align_corners) {
  if (!align_corners) {
    return bilinear_tap<acc_t>(output, in_size, out_size);
  }
  const acc_t scale = out_size > 1 ? static_cast<acc_t>(in_size - 1) / static_cast<acc_t>(out_size - 1) : acc_t(0);
  const acc_t source = scale * static_cast<acc_t>(output);
  const int64_t low = std::min(static_cast<int64_t>(source), in_size - 1);
  const acc_t weight = std::min(source - static_cast<acc_t>(low), acc_t(1));
  return {low, std::min(low + 1, in_size - 1), acc_t(1) - weight, weight};
}

}  // namespace segkernels
