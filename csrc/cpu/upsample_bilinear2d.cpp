// Bilinear resampling on the CPU.
//
// NCHW: a source row is stretched to the output's width once, and two stretched rows are blended into each output row;
// to fewer columns, two source rows are blended and then shrunk.
// channels_last: four pixels are blended into one, all channels at once.
#include <torch/csrc/stable/library.h>

#include "../common/bilinear.h"
#include "../common/upsample_adjoint.h"
#include "../common/upsample_columns.h"

namespace segkernels {
namespace {

template <typename acc_t>
std::vector<BilinearTap<acc_t>> all_taps(const BilinearAxis<acc_t>& axis) {
  std::vector<BilinearTap<acc_t>> taps(axis.out_size);
  for (int64_t x = 0; x < axis.out_size; ++x) {
    taps[x] = axis.tap(x);
  }
  return taps;
}

// `row` has room for kLanes more: each run writes whole vectors, the next one overwrites the excess.
template <typename scalar_t, typename acc_t>
SEGKERNELS_CLONES void stretch_row(const scalar_t* source, const Columns<acc_t>& columns, acc_t* row) {
  typedef acc_t values_t __attribute__((vector_size(32)));
  for (const ColumnRun& run : columns.runs) {
    values_t low_weight, high_weight;
    __builtin_memcpy(&low_weight, columns.low_weight.data() + run.begin, sizeof(values_t));
    __builtin_memcpy(&high_weight, columns.high_weight.data() + run.begin, sizeof(values_t));
    const values_t value =
        to_compute<acc_t>(source[run.low]) * low_weight + to_compute<acc_t>(source[run.high]) * high_weight;
    __builtin_memcpy(row + run.begin, &value, sizeof(values_t));
  }
}

constexpr int64_t kBlendRows = 4;  // output rows that are blended at once

template <int64_t kRows, typename acc_t>
SEGKERNELS_INLINE void blend(const acc_t* low, const acc_t* high, const BilinearTap<acc_t>* taps, int64_t count,
                             acc_t* output) {
  typedef acc_t values_t __attribute__((vector_size(32)));
  acc_t low_weight[kRows], high_weight[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    low_weight[r] = taps[r].low_weight;
    high_weight[r] = taps[r].high_weight;
  }
  int64_t i = 0;
  for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
    const values_t low_value = load_vector<values_t>(low + i);
    const values_t high_value = load_vector<values_t>(high + i);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      store_vector(output + r * count + i, low_value * low_weight[r] + high_value * high_weight[r]);
    }
  }
  for (; i < count; ++i) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      output[r * count + i] = low[i] * low_weight[r] + high[i] * high_weight[r];
    }
  }
}

// Output rows that lie between the same two source rows: what a thread takes is made of whole blocks, so that how a row
// is computed does not depend on the number of threads.
struct RowBlock {
  int64_t begin, count;  // at most kBlendRows
};

// Up to kBlendRows output rows between the same two stretched rows.
template <typename acc_t>
SEGKERNELS_CLONES void blend_rows(const acc_t* low, const acc_t* high, const BilinearTap<acc_t>* taps, int64_t rows,
                                  int64_t count, acc_t* output) {
  if (rows == kBlendRows) {
    blend<kBlendRows>(low, high, taps, count, output);
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    blend<1>(low, high, taps + row, count, output + row * count);
  }
}

template <typename scalar_t, typename acc_t>
void upsample_planes(const Upsample2dShape& s, const BilinearAxis<acc_t>& rows, const BilinearAxis<acc_t>& cols,
                     const scalar_t* input, scalar_t* output) {
  const Columns<acc_t> columns = upsampled_columns(cols);
  const std::vector<BilinearTap<acc_t>> taps = all_taps(rows);
  std::vector<RowBlock> blocks;
  for (int64_t y = 0; y < s.out_h; ++y) {
    if (y == 0 || taps[y].low != taps[y - 1].low || blocks.back().count == kBlendRows) {
      blocks.push_back({y, 0});
    }
    ++blocks.back().count;
  }
  const int64_t plane_blocks = static_cast<int64_t>(blocks.size());
  parallel_items(s.planes() * plane_blocks, s.out_h * s.out_w / plane_blocks, [&](int64_t begin, int64_t end) {
    constexpr bool kNarrow = !std::is_same_v<scalar_t, acc_t>;
    std::vector<acc_t> low(s.out_w + kLanes<acc_t>), high(s.out_w + kLanes<acc_t>);
    std::vector<acc_t> blended(kNarrow ? kBlendRows * s.out_w : 0);
    int64_t low_row = -1;
    int64_t high_row = -1;  // the source rows that `low` and `high` hold
    for (int64_t item = begin; item < end; ++item) {
      const int64_t plane = item / plane_blocks;
      const auto [y, count] = blocks[item - plane * plane_blocks];
      const BilinearTap<acc_t>& tap = taps[y];
      scalar_t* to = output + (plane * s.out_h + y) * s.out_w;
      prefetch<true>(to, count * s.out_w);
      const int64_t want_low = plane * s.in_h + tap.low;
      const int64_t want_high = plane * s.in_h + tap.high;
      if (low_row != want_low) {
        if (high_row == want_low) {
          std::swap(low, high);
          std::swap(low_row, high_row);
        } else {
          stretch_row(input + want_low * s.in_w, columns, low.data());
          low_row = want_low;
        }
      }
      const acc_t* other = low.data();
      if (want_high != want_low) {
        if (high_row != want_high) {
          stretch_row(input + want_high * s.in_w, columns, high.data());
          high_row = want_high;
        }
        other = high.data();
      }
      if constexpr (kNarrow) {
        blend_rows(low.data(), other, &tap, count, s.out_w, blended.data());
        store_values(blended.data(), 1, count * s.out_w, to);
      } else {
        blend_rows(low.data(), other, &tap, count, s.out_w, to);
      }
    }
  });
}

template <typename scalar_t, typename acc_t>
SEGKERNELS_CLONES void blend_source(const scalar_t* low, const scalar_t* high, acc_t low_weight, acc_t high_weight,
                                    int64_t count, acc_t* __restrict row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = to_compute<acc_t>(low[i]) * low_weight + to_compute<acc_t>(high[i]) * high_weight;
  }
}

// halving: output x lies between columns 2x and 2x + 1.
template <typename scalar_t, typename acc_t>
SEGKERNELS_CLONES void shrink_row(const acc_t* __restrict row, const BilinearTap<acc_t>* taps,
                                  const Columns<acc_t>& columns, bool halving, int64_t width,
                                  scalar_t* __restrict output) {
  const acc_t* low_weight = columns.low_weight.data();
  const acc_t* high_weight = columns.high_weight.data();
  if (halving) {
    for (int64_t x = 0; x < width; ++x) {
      store_one(row[2 * x] * low_weight[x] + row[2 * x + 1] * high_weight[x], output + x);
    }
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    store_one(row[taps[x].low] * low_weight[x] + row[taps[x].high] * high_weight[x], output + x);
  }
}

// To fewer columns: the source rows, the wider ones, are blended first, so that only one row is shrunk.
template <typename scalar_t, typename acc_t>
void shrink_planes(const Upsample2dShape& s, const BilinearAxis<acc_t>& rows, const BilinearAxis<acc_t>& cols,
                   const scalar_t* input, scalar_t* output) {
  const Columns<acc_t> columns = upsampled_columns(cols);
  const std::vector<BilinearTap<acc_t>> taps = all_taps(cols);
  bool halving = s.in_w == 2 * s.out_w;
  for (int64_t x = 0; x < s.out_w; ++x) {
    halving &= taps[x].low == 2 * x;
  }
  parallel_items(s.planes() * s.out_h, 2 * s.in_w, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> row(s.in_w);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t plane = item / s.out_h;
      const BilinearTap<acc_t> tap = rows.tap(item - plane * s.out_h);
      const scalar_t* source = input + plane * s.in_h * s.in_w;
      const int64_t next = tap.low + (s.in_h + s.out_h - 1) / s.out_h;  // about there
      prefetch<false>(source + next * s.in_w, next + 1 < s.in_h ? 2 * s.in_w : 0);
      blend_source(source + tap.low * s.in_w, source + tap.high * s.in_w, tap.low_weight, tap.high_weight, s.in_w,
                   row.data());
      shrink_row(row.data(), taps.data(), columns, halving, s.out_w, output + item * s.out_w);
    }
  });
}

// One output row: pixels of `channels` values, each from the two source columns of its tap.
template <typename scalar_t, typename acc_t>
SEGKERNELS_CLONES void blend_pixels(const scalar_t* low_row, const scalar_t* high_row, const BilinearTap<acc_t>& y,
                                    const BilinearTap<acc_t>* taps, int64_t width, int64_t channels, scalar_t* output) {
  for (int64_t x = 0; x < width; ++x, output += channels) {
    const BilinearTap<acc_t>& tap = taps[x];
    const scalar_t* p00 = low_row + tap.low * channels;
    const scalar_t* p01 = low_row + tap.high * channels;
    const scalar_t* p10 = high_row + tap.low * channels;
    const scalar_t* p11 = high_row + tap.high * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const acc_t low = to_compute<acc_t>(p00[c]) * tap.low_weight + to_compute<acc_t>(p01[c]) * tap.high_weight;
      const acc_t high = to_compute<acc_t>(p10[c]) * tap.low_weight + to_compute<acc_t>(p11[c]) * tap.high_weight;
      store_one(low * y.low_weight + high * y.high_weight, output + c);
    }
  }
}

template <typename scalar_t, typename acc_t>
void upsample_pixels(const Upsample2dShape& s, const BilinearAxis<acc_t>& rows, const BilinearAxis<acc_t>& cols,
                     const scalar_t* input, scalar_t* output) {
  const std::vector<BilinearTap<acc_t>> taps = all_taps(cols);
  parallel_items(s.batch * s.out_h, s.out_w * s.channels, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / s.out_h;
      const BilinearTap<acc_t> y = rows.tap(item - n * s.out_h);
      const scalar_t* image = input + n * s.in_h * s.in_w * s.channels;
      const int64_t step = s.in_w * s.channels;
      blend_pixels(image + y.low * step, image + y.high * step, y, taps.data(), s.out_w, s.channels,
                   output + item * s.out_w * s.channels);
    }
  });
}

Tensor upsample_bilinear2d_cpu(const Tensor& input,  // [N, C, h, w]
                               std::vector<int64_t> output_size, bool align_corners, std::optional<double> scales_h,
                               std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_shape("upsample_bilinear2d", input, output_size);
  const Tensor source = to_dense(input, s.channels_last);
  Tensor output = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, input.scalar_type(), input, s.channels_last);
  dispatch_floating(input.scalar_type(), "upsample_bilinear2d", [&]<typename scalar_t>() {
    using acc_t = accumulate_t<scalar_t>;
    const auto rows = bilinear_axis<acc_t>(s.in_h, s.out_h, align_corners, scales_h);
    const auto cols = bilinear_axis<acc_t>(s.in_w, s.out_w, align_corners, scales_w);
    const scalar_t* from = static_cast<const scalar_t*>(source.const_data_ptr());
    scalar_t* to = static_cast<scalar_t*>(output.mutable_data_ptr());
    if (s.channels_last) {
      upsample_pixels(s, rows, cols, from, to);
    } else if (s.out_w < s.in_w) {
      shrink_planes(s, rows, cols, from, to);
    } else {
      upsample_planes(s, rows, cols, from, to);
    }
  });
  return output;
}

Tensor upsample_bilinear2d_backward_cpu(const Tensor& grad_output,  // [N, C, H, W]
                                        std::vector<int64_t> input_size, bool align_corners,
                                        std::optional<double> scales_h, std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_backward_shape("upsample_bilinear2d_backward", grad_output, input_size);
  const Tensor grad = to_dense(grad_output, s.channels_last);
  Tensor grad_input = empty_nchw(s.batch, s.channels, s.in_h, s.in_w, grad.scalar_type(), grad, s.channels_last);
  dispatch_floating(grad.scalar_type(), "upsample_bilinear2d_backward", [&]<typename scalar_t>() {
    using acc_t = accumulate_t<scalar_t>;
    const auto rows = bilinear_axis<acc_t>(s.in_h, s.out_h, align_corners, scales_h);
    const auto cols = bilinear_axis<acc_t>(s.in_w, s.out_w, align_corners, scales_w);
    gather_gradient<true>(s, adjoint_axis<acc_t>(s.in_h, s.out_h, [&](int64_t y) { return rows.tap(y); }),
                          adjoint_axis<acc_t>(s.in_w, s.out_w, [&](int64_t x) { return cols.tap(x); }),
                          static_cast<const scalar_t*>(grad.const_data_ptr()),
                          static_cast<scalar_t*>(grad_input.mutable_data_ptr()));
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("upsample_bilinear2d", TORCH_BOX(&upsample_bilinear2d_cpu));
  m.impl("upsample_bilinear2d_backward", TORCH_BOX(&upsample_bilinear2d_backward_cpu));
}

}  // namespace segkernels
