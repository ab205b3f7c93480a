// Depthwise convolution of stride 1 in NCHW, plane by plane: a band of rows is copied into a buffer padded with zeros,
// so that a tap is an offset, and two output rows are summed side by side, so that they share what they read.
#pragma once

#include <vector>

#include "conv2d_depthwise.h"

namespace segkernels {

// One destination plane of a band: where its first row's window begins in the padded rows, and its weights.
template <typename acc_t>
struct DepthwiseBand {
  const acc_t* rows;
  int64_t pitch;
  int64_t kernel_h, kernel_w, dilation_h, dilation_w;
  const acc_t* weight;
  acc_t bias;
  // The rows of the input that the next band reads.
  const char* next;
  int64_t next_count, next_bytes;
};

// Adds row `i` of the window of the first of kRows output rows, dilation_h apart, to the sums of rows
// [kBegin, kEnd). kKernel is the kernel's size, or 0 for any.
template <int kKernel, int kBegin, int kEnd, int kRows, int kVectors, typename V, typename acc_t>
SEGKERNELS_INLINE void add_window_row(const DepthwiseBand<acc_t>& band, const acc_t* from, int64_t i,
                                      V (&sums)[kRows][kVectors]) {
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  const int64_t kernel_w = kKernel ? kKernel : band.kernel_w;
  const acc_t* at = from + i * band.dilation_h * band.pitch;
  for (int64_t j = 0; j < kernel_w; ++j, at += band.dilation_w) {
    V values[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      values[v] = load_vector<V>(at + v * kStep);
    }
    for (int r = kBegin; r < kEnd; ++r) {
      const V weight = band.weight[(i - r) * kernel_w + j] - V{};  // x - 0 is x: a broadcast, no addition
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] += weight * values[v];
      }
    }
  }
}

// kVectors vectors of kRows output rows.
template <int kKernel, int kRows, int kVectors, typename acc_t>
SEGKERNELS_INLINE void depthwise_tile(const DepthwiseBand<acc_t>& band, const acc_t* from, acc_t* const* to) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = V{} + band.bias;
    }
  }
  const int64_t kernel_h = kKernel ? kKernel : band.kernel_h;
  add_window_row<kKernel, 0, 1>(band, from, 0, sums);
  for (int64_t i = 1; i < kernel_h; ++i) {
    add_window_row<kKernel, 0, kRows>(band, from, i, sums);
  }
  if constexpr (kRows == 2) {
    add_window_row<kKernel, 1, 2>(band, from, kernel_h, sums);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      store_vector(to[r] + v * kStep, sums[r][v]);
    }
  }
}

// kRows whole output rows of at least one vector; the last vector overlaps the one before.
template <int kKernel, int kRows, typename acc_t>
SEGKERNELS_INLINE void depthwise_rows(const DepthwiseBand<acc_t>& band, const acc_t* from, int64_t columns,
                                      acc_t* const* to) {
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  const auto tile = [&]<int kVectors>(int64_t x) SEGKERNELS_INLINE_LAMBDA {
    acc_t* at[kRows];
    for (int r = 0; r < kRows; ++r) {
      at[r] = to[r] + x;
    }
    depthwise_tile<kKernel, kRows, kVectors>(band, from + x, at);
  };
  int64_t x = 0;
  for (; x + 4 * kStep <= columns; x += 4 * kStep) {
    tile.template operator()<4>(x);
  }
  for (; x + 2 * kStep <= columns; x += 2 * kStep) {
    tile.template operator()<2>(x);
  }
  for (; x < columns; x += kStep) {
    tile.template operator()<1>(std::min(x, columns - kStep));
  }
}

// Asks for a row that will be needed soon: the memory works while the sums are computed.
SEGKERNELS_INLINE void prefetch_row(const void* row, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) {
    __builtin_prefetch(static_cast<const char*>(row) + at);
  }
}

// `count` output rows of `columns` values, `out_pitch` apart.
template <int kKernel, typename acc_t>
SEGKERNELS_CLONES void depthwise_band(const DepthwiseBand<acc_t>& band, int64_t count, int64_t columns, acc_t* to,
                                      int64_t out_pitch) {
  const int64_t apart = band.dilation_h;
  int64_t ahead = 0;
  for (int64_t first = 0; first < count; first += 2 * apart) {
    const int64_t last = std::min(first + apart, count);
    for (int64_t y = first; y < last; ++y) {
      for (const int64_t end = std::min(ahead + 2, band.next_count); ahead < end; ++ahead) {
        prefetch_row(band.next + ahead * band.next_bytes, band.next_bytes);
      }
      for (int64_t then = y + 1 < last ? y + 1 : first + 2 * apart, r = 0; r < 2 && then < count; ++r, then += apart) {
        prefetch_row(to + then * out_pitch, columns * static_cast<int64_t>(sizeof(acc_t)));
      }
      acc_t* rows[] = {to + y * out_pitch, to + (y + apart) * out_pitch};
      if (y + apart < count) {
        depthwise_rows<kKernel, 2>(band, band.rows + y * band.pitch, columns, rows);
      } else {
        depthwise_rows<kKernel, 1>(band, band.rows + y * band.pitch, columns, rows);
      }
    }
  }
}

template <typename acc_t>
void depthwise_band(const DepthwiseBand<acc_t>& band, int64_t count, int64_t columns, acc_t* to, int64_t out_pitch) {
  if (band.kernel_h == 3 && band.kernel_w == 3) {
    depthwise_band<3>(band, count, columns, to, out_pitch);
  } else {
    depthwise_band<0>(band, count, columns, to, out_pitch);
  }
}

// The convolution that makes the input's gradient of the output's, where the weights are read backwards.
inline Conv2dParams transposed(Conv2dParams p) {
  std::swap(p.in_h, p.out_h);
  std::swap(p.in_w, p.out_w);
  p.pad_h = (p.kernel_h - 1) * p.dilation_h - p.pad_h;
  p.pad_w = (p.kernel_w - 1) * p.dilation_w - p.pad_w;
  return p;
}

template <typename acc_t>
struct DepthwisePlanes {
  static constexpr int64_t kStep = DepthwiseVector<acc_t>::count;

  Conv2dParams p;

  static bool fits(const Conv2dParams& p) {
    return p.stride_h == 1 && p.stride_w == 1 && p.pad_h >= 0 && p.pad_w >= 0;
  }

  int64_t reach() const {
    return (p.kernel_h - 1) * p.dilation_h;
  }
  // Padded rows, wide enough for the last column's vector.
  int64_t pitch() const {
    return std::max(p.in_w + 2 * p.pad_w, kStep + (p.kernel_w - 1) * p.dilation_w);
  }
  // Output rows of a band: their padded rows stay in L1, or in L2 where the windows are high. Results do not depend
  // on it.
  int64_t band_rows() const {
    constexpr int64_t kNearBytes = 24 << 10;
    const int64_t rows = kNearBytes / (pitch() * static_cast<int64_t>(sizeof(acc_t))) - reach();
    return std::min(p.out_h, std::max({rows, 2 * reach(), 2 * p.dilation_h}));
  }

  // `weight` [Cout, KH, KW] and `bias` [Cout] or null, in the type of the sums.
  void run(const DepthwiseSource<acc_t>& from, const acc_t* weight, const acc_t* bias,
           const DepthwiseTarget<acc_t>& to) const {
    const DepthwiseColumns padded({p.in_w, p.out_w, p.kernel_w, 1, p.pad_w, p.dilation_w, false});
    const bool writes_through = to.size == sizeof(acc_t) && p.out_w >= kStep;
    const int64_t band = band_rows();
    const int64_t bands = (p.out_h + band - 1) / band;
    const int64_t all = p.batch * p.groups * p.in_h;
    const int64_t cost = band * (p.in_w + p.multiplier() * p.out_w);
    parallel_items(p.batch * p.groups * bands, cost, [&](int64_t begin, int64_t end) {
      std::vector<acc_t> rows((band + reach()) * pitch());
      std::vector<acc_t> results(writes_through ? 0 : band * std::max(p.out_w, kStep));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / bands;
        const int64_t first = unit % bands * band;
        const int64_t count = std::min(band, p.out_h - first);
        load(from, plane * p.in_h * p.in_w, first - p.pad_h, count + reach(), padded, rows.data());
        const int64_t group = plane % p.groups;
        // The next plane follows in memory, and what is asked for past the thread's last row is the next thread's.
        const int64_t next = std::min(plane * p.in_h + std::max<int64_t>(0, first + count + reach() - p.pad_h), all);
        for (int64_t q = 0; q < p.multiplier(); ++q) {
          const int64_t channel = group * p.multiplier() + q;
          const DepthwiseBand<acc_t> work{rows.data(),
                                          pitch(),
                                          p.kernel_h,
                                          p.kernel_w,
                                          p.dilation_h,
                                          p.dilation_w,
                                          weight + channel * p.taps(),
                                          bias ? bias[channel] : acc_t(0),
                                          static_cast<const char*>(from.at(next * p.in_w)),
                                          q == 0 ? std::min(count, all - next) : 0,
                                          p.in_w * from.size};
          const int64_t place = ((plane * p.multiplier() + q) * p.out_h + first) * p.out_w;
          if (writes_through) {
            depthwise_band(work, count, p.out_w, static_cast<acc_t*>(to.at(place)), p.out_w);
            continue;
          }
          const int64_t columns = std::max(p.out_w, kStep);
          depthwise_band(work, count, columns, results.data(), columns);
          for (int64_t y = 0; y < count; ++y) {
            to.store(results.data() + y * columns, 0, {p.out_w, 1, 0, 1}, padded, to.at(place + y * p.out_w));
          }
        }
      }
    });
  }

  // Rows [first, first + count) of a plane; those outside are zeros, and so are the columns beside, which nothing
  // ever writes.
  void load(const DepthwiseSource<acc_t>& from, int64_t plane, int64_t first, int64_t count,
            const DepthwiseColumns& padded, acc_t* rows) const {
    for (int64_t y = first; y < first + count; ++y, rows += pitch()) {
      if (y < 0 || y >= p.in_h) {
        std::fill_n(rows + p.pad_w, p.in_w, acc_t(0));
      } else if (from.size == sizeof(acc_t)) {
        std::copy_n(static_cast<const acc_t*>(from.at(plane + y * p.in_w)), p.in_w, rows + p.pad_w);
      } else {
        from.load(from.at(plane + y * p.in_w), {p.in_w, 1, 0, 1}, padded, rows);
      }
    }
  }
};

}  // namespace segkernels
