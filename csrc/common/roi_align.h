// Where RoI Align samples: maths that the CPU and the CUDA kernels share. Coordinates are float (double for double).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "host_device.h"

namespace segkernels {

struct RoiAlignParams {
  int64_t bins_h, bins_w;
  int64_t sampling_ratio;  // samples per bin and axis; 0 or less: as many as a bin has pixels
  bool aligned;
};

// One axis of a box: sample i of bin b lies at start + b * bin + (i + 0.5) * bin / samples.
template <typename T>
struct SampleAxis {
  T start, bin;
  int64_t samples;

  SEGKERNELS_HOST_DEVICE T position(int64_t b, int64_t i) const {
    return start + static_cast<T>(b) * bin + (static_cast<T>(i) + T(0.5)) * bin / static_cast<T>(samples);
  }
};

// Without a finite adaptive count below 2^31 there are no samples: such a box gives zeros.
template <typename T>
SEGKERNELS_HOST_DEVICE SampleAxis<T> sample_axis(T low, T high, T scale, int64_t bins, const RoiAlignParams& p) {
  const T offset = p.aligned ? T(0.5) : T(0);
  SampleAxis<T> axis;
  axis.start = low * scale - offset;
  T extent = (high * scale - offset) - axis.start;
  if (!p.aligned && extent < T(1)) {
    extent = T(1);
  }
  axis.bin = extent / static_cast<T>(bins);
  axis.samples = p.sampling_ratio;
  if (p.sampling_ratio <= 0) {
    const T samples = std::ceil(extent / static_cast<T>(bins));
    axis.samples = samples > T(0) && samples < T(2147483648.0) ? static_cast<int64_t>(samples) : 0;
  }
  return axis;
}

struct SampleRange {
  int64_t begin, end;
};

// The samples of bin b that can lie from low to high, generously: a huge box has millions, and few of them matter.
template <typename T>
SEGKERNELS_HOST_DEVICE SampleRange sample_range(const SampleAxis<T>& axis, int64_t b, T low, T high) {
  SampleRange range{0, axis.samples};
  const T step = axis.bin / static_cast<T>(axis.samples);
  if (axis.samples <= 8 || !(step > T(0))) {
    return range;
  }
  const T base = axis.start + static_cast<T>(b) * axis.bin;
  const T slack = T(3) + 16 * std::numeric_limits<T>::epsilon() * (std::fabs(base) + axis.bin) / step;
  const T first = (low - base) / step - slack;
  const T last = (high - base) / step + slack;
  const T count = static_cast<T>(axis.samples);
  // Comparisons that NaN fails leave the whole range.
  if (first > T(0)) {
    range.begin = first < count ? static_cast<int64_t>(first) : axis.samples;
  }
  if (last < count) {
    range.end = last > T(0) ? static_cast<int64_t>(last) : 0;
  }
  return range;
}

// Those that can lie inside the map.
template <typename T>
SEGKERNELS_HOST_DEVICE SampleRange sample_range(const SampleAxis<T>& axis, int64_t b, int64_t size) {
  return sample_range(axis, b, T(-1), static_cast<T>(size));
}

template <typename T>
struct SampleTap {
  int64_t low, high;
  T low_weight, high_weight;
};

// The two pixels a sample reads; false when it lies outside the map, as NaN does, and counts as zero.
template <typename T>
SEGKERNELS_HOST_DEVICE bool sample_tap(T position, int64_t size, SampleTap<T>& tap) {
  if (!(position >= T(-1) && position <= static_cast<T>(size)) || size == 0) {
    return false;
  }
  position = position > T(0) ? position : T(0);
  tap.low = static_cast<int64_t>(position);
  tap.high = tap.low + 1;
  if (tap.low >= size - 1) {
    tap.low = tap.high = size - 1;
    position = static_cast<T>(tap.low);
  }
  tap.high_weight = position - static_cast<T>(tap.low);
  tap.low_weight = T(1) - tap.high_weight;
  return true;
}

// False only where no sample of bins [first, last] reads a pixel from low to high.
template <typename T>
SEGKERNELS_HOST_DEVICE bool bins_reach(const SampleAxis<T>& axis, int64_t first, int64_t last, int64_t low,
                                       int64_t high) {
  const T a = axis.start + static_cast<T>(first) * axis.bin;
  const T b = axis.start + static_cast<T>(last + 1) * axis.bin;
  const T slack = T(2) + 16 * std::numeric_limits<T>::epsilon() * (std::fabs(a) + std::fabs(b));
  return axis.samples > 0 && (a > b ? a : b) + slack >= static_cast<T>(low) &&
         (a > b ? b : a) - slack <= static_cast<T>(high);
}

// How much of a pixel bin b takes, over all its samples along one axis.
template <typename T>
SEGKERNELS_HOST_DEVICE T pixel_weight(const SampleAxis<T>& axis, int64_t b, int64_t pixel, int64_t size) {
  T weight = 0;
  const SampleRange range = sample_range(axis, b, static_cast<T>(pixel - 1), static_cast<T>(pixel + 1));
  for (int64_t i = range.begin; i < range.end; ++i) {
    SampleTap<T> tap;
    if (sample_tap(axis.position(b, i), size, tap)) {
      weight += tap.low == pixel ? tap.low_weight : T(0);
      weight += tap.high == pixel && tap.high != tap.low ? tap.high_weight : T(0);
    }
  }
  return weight;
}

// What a box's sums are divided by.
template <typename T>
SEGKERNELS_HOST_DEVICE T sample_count(int64_t samples_h, int64_t samples_w) {
  const T count = static_cast<T>(samples_h) * static_cast<T>(samples_w);
  return count > T(1) ? count : T(1);
}

// The image a box belongs to, or -1 when its first column names none.
template <typename T>
SEGKERNELS_HOST_DEVICE int64_t box_image(T id, int64_t batch) {
  return id > T(-1) && id < static_cast<T>(batch) ? static_cast<int64_t>(id) : -1;
}

// Levels of a feature pyramid, numbered from the first map's; scales are halved from one to the next.
struct PyramidParams {
  int64_t levels;
  int64_t level_min, level_max;
  double canonical_scale, canonical_level;
};

inline PyramidParams pyramid_params(const std::vector<double>& scales, double canonical_scale, double canonical_level) {
  return {static_cast<int64_t>(scales.size()), static_cast<int64_t>(-std::log2(scales.front())),
          static_cast<int64_t>(-std::log2(scales.back())), canonical_scale, canonical_level};
}

// Equation 1 of Lin et al. 2017 with torchvision's epsilon; -1 for a box without an area, which has no level.
template <typename T>
SEGKERNELS_HOST_DEVICE int64_t box_level(T x1, T y1, T x2, T y2, const PyramidParams& p) {
  if (p.levels == 1) {
    return 0;
  }
  const T side = std::sqrt((x2 - x1) * (y2 - y1));
  const T level = std::floor(static_cast<T>(p.canonical_level) + std::log2(side / static_cast<T>(p.canonical_scale)) +
                             static_cast<T>(1e-6));
  if (!(level == level)) {
    return -1;
  }
  const T low = static_cast<T>(p.level_min), high = static_cast<T>(p.level_max);
  const int64_t clamped = level < low ? p.level_min : (level > high ? p.level_max : static_cast<int64_t>(level));
  return clamped - p.level_min < p.levels ? clamped - p.level_min : -1;
}

}  // namespace segkernels
