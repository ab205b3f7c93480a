// Backward of a separable resampling: first over rows, which reads the gradient once, then over columns. Each source
// coordinate gathers its own terms.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "upsample2d.h"

namespace segkernels {

constexpr int64_t kAdjointBlock = 1024;  // columns of two rows of sums that stay in L1

// Outputs begin[x] to begin[x + 1] give their low weight to source x and their high weight to source x + 1.
template <typename acc_t>
struct AdjointAxis {
  int64_t in_size, out_size;
  std::vector<int64_t> begin;                  // [in_size + 1]
  std::vector<int64_t> low;                    // [out_size]
  std::vector<acc_t> low_weight, high_weight;  // [out_size]
  bool two_taps = false;                       // some output reads two sources
  int64_t factor = 0;                          // 2 or 4: groups [regular_begin, regular_end) have so many outputs and
  int64_t regular_begin = 0, regular_end = 0;  // the same weights
  bool halving = false;                        // output x lies between sources 2x and 2x + 1

  int64_t count(int64_t source) const {
    return begin[source + 1] - begin[source];
  }
};

// tap(output) gives the (at most two, then neighbouring) source coordinates of an output, which grow with it.
template <typename acc_t, typename F>
AdjointAxis<acc_t> adjoint_axis(int64_t in_size, int64_t out_size, const F& tap) {
  AdjointAxis<acc_t> axis{in_size, out_size, std::vector<int64_t>(in_size + 1, out_size)};
  int64_t source = -1;
  axis.halving = in_size == 2 * out_size;
  for (int64_t x = 0; x < out_size; ++x) {
    const auto [low, high, low_weight, high_weight] = tap(x);
    axis.low.push_back(low);
    axis.low_weight.push_back(low == high ? low_weight + high_weight : low_weight);
    axis.high_weight.push_back(low == high ? acc_t(0) : high_weight);
    axis.two_taps |= low != high;
    axis.halving &= low == 2 * x;
    while (source < low) {
      axis.begin[++source] = x;
    }
  }
  const int64_t factor = out_size / in_size;
  if ((factor == 2 || factor == 4) && in_size > 2) {
    const int64_t first = axis.begin[1];
    axis.regular_begin = axis.regular_end = 1;
    const auto regular = [&](int64_t group) {
      bool same = axis.count(group) == factor;
      for (int64_t k = 0; same && k < factor; ++k) {
        const int64_t x = axis.begin[group] + k;
        same = axis.low_weight[x] == axis.low_weight[first + k] && axis.high_weight[x] == axis.high_weight[first + k];
      }
      return same;
    };
    while (axis.regular_end < in_size && regular(axis.regular_end)) {
      ++axis.regular_end;
    }
    axis.factor = axis.regular_end > axis.regular_begin ? factor : 0;
  }
  return axis;
}

// Adds rows by their low weights to `current`, by their high ones to `next`; kFirst: `current` becomes the old `next`
// first, and `next` zero.
template <int64_t kRows, bool kTwo, bool kFirst, typename acc_t>
SEGKERNELS_INLINE void add_rows(const acc_t* __restrict grad, int64_t stride, const acc_t* low_weight,
                                const acc_t* high_weight, int64_t count, acc_t* __restrict current,
                                acc_t* __restrict next) {
  acc_t low[kRows], high[kRows];
  std::copy_n(low_weight, kRows, low);
  std::copy_n(high_weight, kRows, high);
  for (int64_t i = 0; i < count; ++i) {
    acc_t to_low = 0, to_high = 0;
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      const acc_t value = grad[r * stride + i];
      to_low += value * low[r];
      to_high += kTwo ? value * high[r] : acc_t(0);
    }
    if constexpr (kTwo) {
      current[i] = to_low + (kFirst ? next[i] : current[i]);
      next[i] = kFirst ? to_high : to_high + next[i];
    } else {
      current[i] = kFirst ? to_low : to_low + current[i];
    }
  }
}

// Goes to the next source row: current = next + the rows of its group by their low weights, next = by the high ones.
template <bool kTwo, typename acc_t, typename scalar_t>
SEGKERNELS_CLONES void advance_row(const scalar_t* grad, int64_t stride, const acc_t* low_weight,
                                   const acc_t* high_weight, int64_t rows, int64_t count, acc_t* current, acc_t* next) {
  if (rows == 0) {
    if (kTwo) {
      std::copy_n(next, count, current);
      std::fill_n(next, count, acc_t(0));
    } else {
      std::fill_n(current, count, acc_t(0));
    }
  }
  for (int64_t start = 0; start < count; start += kAdjointBlock) {
    const int64_t block = std::min(kAdjointBlock, count - start);
    const auto add = [&]<int64_t kRows, bool kFirst>(int64_t row) SEGKERNELS_INLINE_LAMBDA {
      const scalar_t* const from = grad + row * stride + start;
      const auto add_from = [&](const acc_t* values, int64_t step) SEGKERNELS_INLINE_LAMBDA {
        add_rows<kRows, kTwo, kFirst>(values, step, low_weight + row, high_weight + row, block, current + start,
                                      next + start);
      };
      if constexpr (std::is_same_v<scalar_t, acc_t>) {
        add_from(from, stride);
      } else {
        acc_t values[kRows * kAdjointBlock];
        for (int64_t r = 0; r < kRows; ++r) {
          load_values(from + r * stride, 1, block, values + r * kAdjointBlock);
        }
        add_from(values, kAdjointBlock);
      }
      return row + kRows;
    };
    int64_t row = 0;
    if (rows >= 4) {
      row = add.template operator()<4, true>(row);
    } else if (rows >= 2) {
      row = add.template operator()<2, true>(row);
    } else if (rows == 1) {
      row = add.template operator()<1, true>(row);
    }
    while (row + 4 <= rows) {
      row = add.template operator()<4, false>(row);
    }
    while (row < rows) {
      row = add.template operator()<1, false>(row);
    }
  }
}

// Sources whose own group and the one before are regular. `row` has room for a second row, of what each group gives to
// the next source.
template <int64_t kFactor, bool kTwo, typename acc_t>
SEGKERNELS_INLINE void gather_regular(const acc_t* __restrict sums, const AdjointAxis<acc_t>& axis, int64_t begin,
                                      int64_t end, acc_t* __restrict row) {
  acc_t low[kFactor], high[kFactor];
  const int64_t first = axis.begin[axis.regular_begin];
  std::copy_n(axis.low_weight.data() + first, kFactor, low);
  std::copy_n(axis.high_weight.data() + first, kFactor, high);
  const int64_t before = kTwo ? begin - 1 : begin;
  sums += axis.begin[before];
  acc_t* __restrict to_own = row + before;
  acc_t* __restrict to_next = row + axis.in_size + 1 + before;
  for (int64_t x = 0; x < end - before; ++x) {
    acc_t own = 0, next = 0;
#pragma GCC unroll 4
    for (int64_t k = 0; k < kFactor; ++k) {
      own += sums[x * kFactor + k] * low[k];
      next += kTwo ? sums[x * kFactor + k] * high[k] : acc_t(0);
    }
    to_own[x] = own;
    if constexpr (kTwo) {
      to_next[x] = next;
    }
  }
  if constexpr (kTwo) {
    for (int64_t x = 1; x < end - before; ++x) {
      to_own[x] += to_next[x - 1];
    }
  }
}

// The horizontal half, one row of one plane.
template <bool kTwo, typename acc_t>
SEGKERNELS_CLONES void gather_columns(const acc_t* sums, const AdjointAxis<acc_t>& axis, acc_t* __restrict row) {
  const acc_t* low_weight = axis.low_weight.data();
  const acc_t* high_weight = axis.high_weight.data();
  if (axis.halving) {
    for (int64_t x = 0; x < axis.out_size; ++x) {
      row[2 * x] = sums[x] * low_weight[x];
      row[2 * x + 1] = kTwo ? sums[x] * high_weight[x] : acc_t(0);
    }
    return;
  }
  if (axis.out_size < axis.in_size) {
    std::fill_n(row, axis.in_size + 1, acc_t(0));
    for (int64_t x = 0; x < axis.out_size; ++x) {
      row[axis.low[x]] += sums[x] * low_weight[x];
      if constexpr (kTwo) {
        row[axis.low[x] + 1] += sums[x] * high_weight[x];
      }
    }
    return;
  }
  const auto gather = [&](int64_t begin, int64_t end) SEGKERNELS_INLINE_LAMBDA {
    for (int64_t x = begin; x < end; ++x) {
      acc_t low = 0, high = 0;
      for (int64_t i = axis.begin[x]; i < axis.begin[x + 1]; ++i) {
        low += sums[i] * low_weight[i];
      }
      if (kTwo && axis.two_taps && x > 0) {
        for (int64_t i = axis.begin[x - 1]; i < axis.begin[x]; ++i) {
          high += sums[i] * high_weight[i];
        }
      }
      row[x] = low + high;
    }
  };
  const int64_t begin = std::min(axis.in_size, axis.regular_begin + (axis.factor && kTwo));
  const int64_t end = axis.factor ? std::max(begin, axis.regular_end) : begin;
  if (axis.factor == 4) {
    gather_regular<4, kTwo>(sums, axis, begin, end, row);
  } else if (axis.factor == 2) {
    gather_regular<2, kTwo>(sums, axis, begin, end, row);
  }
  gather(0, begin);
  gather(end, axis.in_size);
}

// The same for a channels_last row: pixels of `channels` values.
template <bool kTwo, typename acc_t>
SEGKERNELS_CLONES void gather_pixels(const acc_t* sums, const AdjointAxis<acc_t>& axis, int64_t channels, acc_t* row) {
  const acc_t* low_weight = axis.low_weight.data();
  const acc_t* high_weight = axis.high_weight.data();
  for (int64_t x = 0; x < axis.in_size; ++x, row += channels) {
    const int64_t begin = axis.begin[x];
    const int64_t end = axis.begin[x + 1];
    const int64_t before = kTwo && axis.two_taps && x > 0 ? axis.begin[x - 1] : begin;
    for_each_vector<acc_t>(channels, [&]<typename V>(int64_t c) SEGKERNELS_INLINE_LAMBDA {
      V low = {}, high = {};
      for (int64_t i = begin; i < end; ++i) {
        low += load_vector<V>(sums + i * channels + c) * low_weight[i];
      }
      for (int64_t i = before; i < begin; ++i) {
        high += load_vector<V>(sums + i * channels + c) * high_weight[i];
      }
      low += high;
      __builtin_memcpy(row + c, &low, sizeof(V));
    });
  }
}

// kTwo: outputs may read two source coordinates of a dimension, and not one.
template <bool kTwo, typename scalar_t, typename acc_t>
void gather_gradient(const Upsample2dShape& s, const AdjointAxis<acc_t>& rows, const AdjointAxis<acc_t>& columns,
                     const scalar_t* grad_output, scalar_t* grad_input) {
  const int64_t images = s.channels_last ? s.batch : s.planes();
  const int64_t step = s.channels_last ? s.channels : 1;  // values of one pixel
  const int64_t out_row = s.out_w * step;
  const int64_t in_row = s.in_w * step;
  parallel_items(images * s.in_h, (1 + s.out_h / s.in_h) * out_row, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> current(out_row), next(out_row), row(2 * in_row + 2);
    const auto advance = [&](int64_t image, int64_t y) {
      const int64_t first = rows.begin[y];
      advance_row<kTwo>(grad_output + (image * s.out_h + first) * out_row, out_row, rows.low_weight.data() + first,
                        rows.high_weight.data() + first, rows.count(y), out_row, current.data(), next.data());
      if (kTwo && !rows.two_taps) {
        std::fill(next.begin(), next.end(), acc_t(0));  // an infinite gradient times weight zero
      }
    };
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / s.in_h;
      const int64_t y = item - image * s.in_h;
      if (y == 0) {
        std::fill(next.begin(), next.end(), acc_t(0));
      } else if (kTwo && item == begin) {
        advance(image, y - 1);
      }
      advance(image, y);
      if (!s.channels_last && y + 1 < s.in_h) {
        prefetch<false>(grad_output + (image * s.out_h + rows.begin[y + 1]) * out_row, rows.count(y + 1) * out_row);
      }
      if (s.channels_last) {
        gather_pixels<kTwo>(current.data(), columns, step, row.data());
      } else {
        gather_columns<kTwo>(current.data(), columns, row.data());
      }
      store_values(row.data(), 1, in_row, grad_input + item * in_row);
    }
  });
}

}  // namespace segkernels
