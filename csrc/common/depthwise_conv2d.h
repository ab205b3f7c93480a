// Depthwise convolution row by row, for the forward and, seen as a transposed convolution, for the input's gradient.
//
// Source rows are brought into a ring of rows padded with zeros, in the type of the sums: after that no tap looks at
// borders, strides, dtypes or layouts, and every source element is read from memory once. A stride is a set of phases:
// columns of one phase stand side by side, so that every tap is a run of neighbours. NCHW keeps one channel a row and
// vectorises over columns; channels_last keeps kDepthwiseLanes channels side by side and vectorises over those.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "convolution_axis.h"
#include "loss_blocks.h"

namespace segkernels {

constexpr int64_t kDepthwiseLanes = 16;

using DepthwiseAxis = ConvolutionAxis<int64_t>;

// Where the columns of a padded source row stand, and which of them each tap reads.
struct DepthwiseColumns {
  struct Tap {
    int64_t tap, offset;
  };
  // Source column x stands at (x + source_shift) of its row, place i in phase i % source_phases.
  int64_t source, source_phases, source_shift;
  int64_t phase_length;
  // Result v of phase f is column v * dest_phases + f - dest_shift.
  int64_t dest, dest_phases, dest_shift;
  int64_t dest_count;  // results of a phase
  std::vector<std::vector<Tap>> taps;

  explicit DepthwiseColumns(const DepthwiseAxis& axis) {
    constexpr int64_t kSlack = 16;  // vectors may read past the last column
    const int64_t spread = (axis.kernel - 1) * axis.dilation / axis.stride;
    source = axis.source;
    dest = axis.dest;
    taps.resize(axis.transposed ? axis.stride : 1);
    if (axis.transposed) {
      const int64_t first = axis.pad / axis.stride;
      source_phases = 1;
      source_shift = spread;
      dest_phases = axis.stride;
      dest_shift = axis.pad % axis.stride;
      dest_count = (axis.dest - 1 + axis.pad) / axis.stride - first + 1;
      phase_length = spread + std::max(first + dest_count, source) + kSlack;
      for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        const int64_t at = tap * axis.dilation;
        taps[at % axis.stride].push_back({tap, spread + first - at / axis.stride});
      }
    } else {
      source_phases = axis.stride;
      source_shift = axis.pad;
      dest_phases = 1;
      dest_shift = 0;
      dest_count = dest;
      phase_length = std::max(dest + spread, (source - 1 + axis.pad) / axis.stride + 1) + kSlack;
      for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        const int64_t at = tap * axis.dilation;
        taps[0].push_back({tap, at % axis.stride * phase_length + at / axis.stride});
      }
    }
  }

  int64_t row_length() const {
    return source_phases * phase_length;
  }
};

// One row of a tensor: a channel (NCHW) or up to kDepthwiseLanes of them (channels_last).
struct DepthwiseStrides {
  int64_t row, pixel, channel;
  int64_t channels;
};

// Values of one dtype in the other, kDepthwiseLanes at a time: what is strided is gathered first, since conversions of
// half types are long.
template <int kLanes, typename acc_t, typename T>
SEGKERNELS_CLONES void load_depthwise_row(const T* from, const DepthwiseStrides& strides,
                                          const DepthwiseColumns& columns, acc_t* to) {
  const int64_t phases = columns.source_phases;
  for (int64_t first = 0; first < std::min(phases, columns.source); ++first) {
    const int64_t place = first + columns.source_shift;
    acc_t* at = to + (place % phases * columns.phase_length + place / phases) * kLanes;
    const T* pixel = from + first * strides.pixel;
    const int64_t step = phases * strides.pixel;
    const int64_t count = (columns.source - first + phases - 1) / phases;
    if constexpr (kLanes == 1) {
      T values[kDepthwiseLanes] = {};
      for (int64_t x = 0; x < count; x += step == 1 ? count : kDepthwiseLanes) {
        const T* source = pixel + x;
        int64_t run = count;
        if (step != 1) {
          run = std::min(kDepthwiseLanes, count - x);
          source = values;
          for (int64_t i = 0; i < run; ++i) {
            values[i] = pixel[(x + i) * step];
          }
        }
        for (int64_t i = 0; i < run; ++i) {
          at[x + i] = to_compute<acc_t>(source[i]);
        }
      }
    } else {
      const bool whole = strides.channels == kLanes && strides.channel == 1;
      T values[kLanes] = {};
      for (int64_t x = 0; x < count; ++x) {
        const T* source = pixel + x * step;
        if (!whole) {
          for (int64_t c = 0; c < strides.channels; ++c) {
            values[c] = source[c * strides.channel];
          }
          source = values;
        }
        for (int c = 0; c < kLanes; ++c) {
          at[x * kLanes + c] = to_compute<acc_t>(source[c]);
        }
      }
    }
  }
}

// Results of one phase into their row.
template <int kLanes, typename acc_t, typename T>
SEGKERNELS_CLONES void store_depthwise_row(const acc_t* from, int64_t phase, const DepthwiseStrides& strides,
                                           const DepthwiseColumns& columns, T* to) {
  const int64_t first = phase >= columns.dest_shift ? 0 : 1;
  const int64_t column = first * columns.dest_phases + phase - columns.dest_shift;
  const int64_t count = (columns.dest - column + columns.dest_phases - 1) / columns.dest_phases;
  const int64_t step = columns.dest_phases * strides.pixel;
  from += first * kLanes;
  to += column * strides.pixel;
  if constexpr (kLanes == 1) {
    T values[kDepthwiseLanes] = {};
    for (int64_t x = 0; x < count; x += step == 1 ? count : kDepthwiseLanes) {
      const int64_t run = step == 1 ? count : std::min(kDepthwiseLanes, count - x);
      T* target = step == 1 ? to : values;
      for (int64_t i = 0; i < run; ++i) {
        store_value(target[i], from[x + i]);
      }
      for (int64_t i = 0; target == values && i < run; ++i) {
        to[(x + i) * step] = values[i];
      }
    }
  } else {
    const bool whole = strides.channels == kLanes && strides.channel == 1;
    T values[kLanes] = {};
    for (int64_t x = 0; x < count; ++x) {
      T* target = whole ? to + x * step : values;
      for (int c = 0; c < kLanes; ++c) {
        store_value(target[c], from[x * kLanes + c]);
      }
      for (int64_t c = 0; !whole && c < strides.channels; ++c) {
        to[x * step + c * strides.channel] = values[c];
      }
    }
  }
}

// A tensor's memory and how its rows are read: what walks over it exists once for all dtypes.
template <typename acc_t>
struct DepthwiseSource {
  const void* data;
  int64_t size;  // bytes of an element
  void (*load)(const void* row, const DepthwiseStrides&, const DepthwiseColumns&, acc_t* to);

  const void* at(int64_t offset) const {
    return static_cast<const char*>(data) + offset * size;
  }
};

template <int kLanes, typename T>
DepthwiseSource<accumulate_t<T>> depthwise_source(const T* data) {
  using acc_t = accumulate_t<T>;
  return {data, sizeof(T),
          [](const void* row, const DepthwiseStrides& strides, const DepthwiseColumns& columns, acc_t* to) {
            load_depthwise_row<kLanes>(static_cast<const T*>(row), strides, columns, to);
          }};
}

// The padded rows of one plane that the current results need. A row is loaded when it is asked for the first time.
template <typename acc_t, int kLanes>
class DepthwiseRing {
 public:
  DepthwiseRing(const DepthwiseSource<acc_t>& source, int64_t rows, const DepthwiseColumns& columns)
      : source_(source),
        columns_(columns),
        held_(std::bit_ceil(static_cast<uint64_t>(rows)), -1),  // a power of two: a division per row is dear
        mask_(static_cast<int64_t>(held_.size()) - 1),
        row_length_(columns.row_length() * kLanes),
        values_(held_.size() * row_length_) {}

  // `plane` is the place of the plane's first element. The ring forgets what it held.
  void start(int64_t plane, const DepthwiseStrides& strides) {
    if (strides.channels < strides_.channels) {
      std::fill(values_.begin(), values_.end(), acc_t(0));
    }
    plane_ = plane;
    strides_ = strides;
    std::fill(held_.begin(), held_.end(), -1);
  }

  const acc_t* row(int64_t y) {
    const int64_t slot = y & mask_;
    acc_t* values = values_.data() + slot * row_length_;
    if (held_[slot] != y) {
      held_[slot] = y;
      source_.load(source_.at(plane_ + y * strides_.row), strides_, columns_, values);
    }
    return values;
  }

 private:
  DepthwiseSource<acc_t> source_;
  const DepthwiseColumns& columns_;
  std::vector<int64_t> held_;
  int64_t mask_, row_length_;
  std::vector<acc_t> values_;
  int64_t plane_ = 0;
  DepthwiseStrides strides_{};
};

// Where a tap reads and what it multiplies with: one weight (NCHW), kDepthwiseLanes of them (channels_last).
template <typename acc_t>
struct DepthwiseTap {
  const acc_t* source;
  const acc_t* weight;
};

template <typename acc_t>
struct DepthwiseVector {
  typedef acc_t type __attribute__((vector_size(32)));
  static constexpr int64_t count = 32 / sizeof(acc_t);
};

// kVectors results from `column` on. Two sums each, so that additions need not wait for each other.
template <int kVectors, typename acc_t>
SEGKERNELS_INLINE void depthwise_columns(const DepthwiseTap<acc_t>* taps, int64_t count, acc_t bias, int64_t column,
                                         acc_t* to) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  V even[kVectors], odd[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    even[i] = V{} + bias;
    odd[i] = V{};
  }
  int64_t t = 0;
  for (; t + 1 < count; t += 2) {
    const V a = *taps[t].weight - V{};  // x - 0 is x: a broadcast, no addition
    const V b = *taps[t + 1].weight - V{};
    for (int i = 0; i < kVectors; ++i) {
      even[i] += a * load_vector<V>(taps[t].source + column + i * kStep);
      odd[i] += b * load_vector<V>(taps[t + 1].source + column + i * kStep);
    }
  }
  if (t < count) {
    const V a = *taps[t].weight - V{};
    for (int i = 0; i < kVectors; ++i) {
      even[i] += a * load_vector<V>(taps[t].source + column + i * kStep);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    store_vector(to + column + i * kStep, even[i] + odd[i]);
  }
}

// Nine taps, the 3x3 kernel's: weights and places stay in registers.
template <typename acc_t>
SEGKERNELS_INLINE void depthwise_nine(const DepthwiseTap<acc_t>* taps, acc_t bias, int64_t columns, acc_t* to) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  V weight[9];
  const acc_t* source[9];
  for (int t = 0; t < 9; ++t) {
    weight[t] = *taps[t].weight - V{};
    source[t] = taps[t].source;
  }
  for (int64_t x = 0; x < columns; x += kStep) {
    V sums[3] = {V{} + bias, V{}, V{}};
    for (int t = 0; t < 9; ++t) {
      sums[t % 3] += weight[t] * load_vector<V>(source[t] + x);
    }
    store_vector(to + x, sums[0] + (sums[1] + sums[2]));
  }
}

// NCHW: `columns` results of one row; writes whole vectors.
template <typename acc_t>
SEGKERNELS_CLONES void depthwise_row(const DepthwiseTap<acc_t>* taps, int64_t count, acc_t bias, int64_t columns,
                                     acc_t* to) {
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  if (count == 9) {
    depthwise_nine(taps, bias, columns, to);
    return;
  }
  int64_t x = 0;
  for (; x + 3 * kStep < columns; x += 4 * kStep) {
    depthwise_columns<4>(taps, count, bias, x, to);
  }
  for (; x + kStep < columns; x += 2 * kStep) {
    depthwise_columns<2>(taps, count, bias, x, to);
  }
  for (; x < columns; x += kStep) {
    depthwise_columns<1>(taps, count, bias, x, to);
  }
}

// channels_last: kPixels results from `pixel` on.
template <int kPixels, typename acc_t>
SEGKERNELS_INLINE void depthwise_pixels(const DepthwiseTap<acc_t>* taps, int64_t count, const acc_t* bias,
                                        int64_t pixel, acc_t* to) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  constexpr int kVectors = 2;
  for (int64_t c = 0; c < kDepthwiseLanes; c += kVectors * kStep) {
    const int64_t at = pixel * kDepthwiseLanes + c;
    V sums[kPixels][kVectors];
    for (int i = 0; i < kPixels; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = load_vector<V>(bias + c + v * kStep);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      const acc_t* source = taps[t].source + at;
      for (int v = 0; v < kVectors; ++v) {
        const V weight = load_vector<V>(taps[t].weight + c + v * kStep);
        for (int i = 0; i < kPixels; ++i) {
          sums[i][v] += weight * load_vector<V>(source + i * kDepthwiseLanes + v * kStep);
        }
      }
    }
    for (int i = 0; i < kPixels; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        store_vector(to + at + i * kDepthwiseLanes + v * kStep, sums[i][v]);
      }
    }
  }
}

// channels_last: `pixels` results of one row, of kDepthwiseLanes channels.
template <typename acc_t>
SEGKERNELS_CLONES void depthwise_row(const DepthwiseTap<acc_t>* taps, int64_t count, const acc_t* bias, int64_t pixels,
                                     acc_t* to) {
  int64_t x = 0;
  for (; x + 4 <= pixels; x += 4) {
    depthwise_pixels<4>(taps, count, bias, x, to);
  }
  for (; x < pixels; ++x) {
    depthwise_pixels<1>(taps, count, bias, x, to);
  }
}

}  // namespace segkernels
