// Separable resampling on the CPU, one dimension at a time: rows are stretched to the output's columns and blended, and
// the adjoint gathers, for each source coordinate, the outputs that read it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "loss_blocks.h"
#include "parallel.h"
#include "simd.h"

namespace segkernels {

// Neighbouring output pixels that share their source columns and are computed as one vector.
template <typename acc_t>
constexpr int64_t kLanes = 32 / sizeof(acc_t);

constexpr int64_t kAdjointBlock = 2048;  // sums of one block of columns that stay in L1

// Sizes of a resampling; channels_last if both of its tensors are.
struct Upsample2dShape {
  int64_t batch, channels;
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  bool channels_last;

  int64_t planes() const {
    return batch * channels;
  }
};

inline void check_output_size(const char* op, const char* argument, const std::vector<int64_t>& size,
                              const Tensor& tensor) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, op, ": expected ", argument,
                  " to be two positive sizes");
  check_dim(tensor, 4, op, "the tensor");
  STD_TORCH_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0, op, ": expected a height and width of at least 1, got ",
                  shape_string(tensor));
}

// The outputs that read one source coordinate, and with which weights.
struct AdjointRange {
  int64_t begin, end;
  int64_t weights;  // offset of the first weight
};

template <typename acc_t>
struct AdjointAxis {
  std::vector<AdjointRange> ranges;  // [in_size]
  std::vector<acc_t> weights;
};

// tap(output) gives the (at most two) source coordinates of an output, which grow with it.
template <typename acc_t, typename F>
AdjointAxis<acc_t> adjoint_axis(int64_t in_size, int64_t out_size, const F& tap) {
  AdjointAxis<acc_t> axis;
  axis.ranges.resize(in_size);
  int64_t begin = 0;
  for (int64_t source = 0; source < in_size; ++source) {
    while (begin < out_size && tap(begin).high < source) {
      ++begin;
    }
    AdjointRange& range = axis.ranges[source];
    range = {begin, begin, static_cast<int64_t>(axis.weights.size())};
    for (; range.end < out_size; ++range.end) {
      const auto [low, high, low_weight, high_weight] = tap(range.end);
      if (low > source) {
        break;
      }
      axis.weights.push_back((low == source ? low_weight : acc_t(0)) + (high == source ? high_weight : acc_t(0)));
    }
  }
  return axis;
}

template <typename scalar_t, typename acc_t>
SEGKERNELS_INLINE void store_one(acc_t value, scalar_t* to) {
  if constexpr (std::is_same_v<scalar_t, half>) {
    to->x = float_to_half_bits(value);
  } else if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    to->x = float_to_bfloat16_bits(value);
  } else {
    *to = value;
  }
}

// sums[i] = sum over rows of weights[row] * grad[row * stride + i].
template <typename acc_t, typename scalar_t>
SEGKERNELS_CLONES void add_rows(const scalar_t* grad, int64_t stride, const acc_t* weights, int64_t rows, int64_t count,
                                acc_t* sums) {
  for (int64_t start = 0; start < count; start += kAdjointBlock) {
    const int64_t block = std::min(kAdjointBlock, count - start);
    acc_t* sum = sums + start;
    int64_t row = 0;
    if (rows % 2 == 0) {
      std::fill(sum, sum + block, acc_t(0));
    } else {
      for (int64_t i = 0; i < block; ++i) {
        sum[i] = to_compute<acc_t>(grad[start + i]) * weights[0];
      }
      row = 1;
    }
    for (; row < rows; row += 2) {
      const scalar_t* first = grad + row * stride + start;
      const scalar_t* second = first + stride;
      for (int64_t i = 0; i < block; ++i) {
        sum[i] += to_compute<acc_t>(first[i]) * weights[row] + to_compute<acc_t>(second[i]) * weights[row + 1];
      }
    }
  }
}

// The horizontal half of the adjoint, one row of one plane.
template <typename acc_t, typename scalar_t>
SEGKERNELS_CLONES void gather_columns(const acc_t* sums, const AdjointAxis<acc_t>& axis, scalar_t* grad_input) {
  const int64_t width = static_cast<int64_t>(axis.ranges.size());
  const AdjointRange* ranges = axis.ranges.data();
  for (int64_t x = 0; x < width; ++x) {
    const acc_t* weights = axis.weights.data() + ranges[x].weights;
    const acc_t* from = sums + ranges[x].begin;
    const int64_t count = ranges[x].end - ranges[x].begin;
    acc_t even = 0, odd = 0;
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      even += from[i] * weights[i];
      odd += from[i + 1] * weights[i + 1];
    }
    if (i < count) {
      even += from[i] * weights[i];
    }
    store_one(even + odd, grad_input + x);
  }
}

// Backward of a separable resampling: each source row gathers its output rows, then each source column its columns.
template <typename scalar_t, typename acc_t>
void gather_gradient(const Upsample2dShape& s, const AdjointAxis<acc_t>& rows, const AdjointAxis<acc_t>& columns,
                     const scalar_t* grad_output, scalar_t* grad_input) {
  const int64_t images = s.channels_last ? s.batch : s.planes();
  const int64_t step = s.channels_last ? s.channels : 1;  // values of one pixel
  const int64_t out_row = s.out_w * step;
  const int64_t work = (1 + 2 * s.out_h / s.in_h) * out_row;
  parallel_items(images * s.in_h, work, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> sums(out_row), pixel(step);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / s.in_h;
      const AdjointRange& range = rows.ranges[item - image * s.in_h];
      const scalar_t* grad = grad_output + (image * s.out_h + range.begin) * out_row;
      add_rows(grad, out_row, rows.weights.data() + range.weights, range.end - range.begin, out_row, sums.data());
      scalar_t* to = grad_input + item * s.in_w * step;
      if (!s.channels_last) {
        gather_columns(sums.data(), columns, to);
        continue;
      }
      for (int64_t x = 0; x < s.in_w; ++x) {
        const AdjointRange& column = columns.ranges[x];
        add_rows(sums.data() + column.begin * step, step, columns.weights.data() + column.weights,
                 column.end - column.begin, step, pixel.data());
        store_values(pixel.data(), 1, step, to + x * step);
      }
    }
  });
}

}  // namespace segkernels
