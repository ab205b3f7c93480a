// Nearest-neighbour resampling on the CPU. The forward moves values without looking at them and is instantiated by
// element size; the backward sums, for each source pixel, the outputs that took its value.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../common/max_unpool2d.h"
#include "../common/nearest.h"
#include "../common/upsample_adjoint.h"

namespace segkernels {
namespace {

std::vector<int64_t> sources(const NearestAxis& axis) {
  std::vector<int64_t> result(axis.out_size);
  for (int64_t x = 0; x < axis.out_size; ++x) {
    result[x] = axis.source(x);
  }
  return result;
}

template <typename T>
SEGKERNELS_CLONES void take_columns(const T* source, const int64_t* columns, int64_t count, T* output) {
  for (int64_t x = 0; x < count; ++x) {
    output[x] = source[columns[x]];
  }
}

// Whole multiples of the width, the usual case, need no table.
template <typename T, int64_t kTimes>
SEGKERNELS_CLONES void repeat_columns(const T* source, int64_t count, T* output) {
  for (int64_t x = 0; x < count; ++x) {
    for (int64_t k = 0; k < kTimes; ++k) {
      output[x * kTimes + k] = source[x];
    }
  }
}

template <typename T>
void resample(const Upsample2dShape& s, const NearestAxis& rows, const NearestAxis& cols, const T* input, T* output) {
  const std::vector<int64_t> columns = sources(cols);
  const int64_t images = s.channels_last ? s.batch : s.planes();
  const int64_t step = s.channels_last ? s.channels : 1;  // values of one pixel
  const int64_t out_row = s.out_w * step;
  const int64_t times = cols.whole_factor();
  parallel_items(images * s.out_h, out_row, [&](int64_t begin, int64_t end) {
    int64_t last = -1;  // the source row that the row before took
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / s.out_h;
      const int64_t source_row = image * s.in_h + rows.source(item - image * s.out_h);
      const T* source = input + source_row * s.in_w * step;
      T* to = output + item * out_row;
      prefetch<true>(to + out_row, item + 1 < end ? out_row : 0);
      if (source_row == last) {
        std::memcpy(static_cast<void*>(to), to - out_row, out_row * sizeof(T));
      } else if (step > 1) {
        for (int64_t x = 0; x < s.out_w; ++x) {
          std::memcpy(static_cast<void*>(to + x * step), source + columns[x] * step, step * sizeof(T));
        }
      } else if (times == 2) {
        repeat_columns<T, 2>(source, s.in_w, to);
      } else if (times == 4) {
        repeat_columns<T, 4>(source, s.in_w, to);
      } else {
        take_columns(source, columns.data(), s.out_w, to);
      }
      last = source_row;
    }
  });
}

Tensor upsample_nearest2d_cpu(const Tensor& input,  // [N, C, h, w]
                              std::vector<int64_t> output_size, std::optional<double> scales_h,
                              std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_shape("upsample_nearest2d", input, output_size);
  const Tensor source = to_dense(input, s.channels_last);
  Tensor output = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, input.scalar_type(), input, s.channels_last);
  dispatch_element(input, "upsample_nearest2d", [&]<typename T>() {
    resample(s, nearest_axis(s.in_h, s.out_h, scales_h), nearest_axis(s.in_w, s.out_w, scales_w),
             static_cast<const T*>(source.const_data_ptr()), static_cast<T*>(output.mutable_data_ptr()));
  });
  return output;
}

template <typename acc_t>
AdjointAxis<acc_t> nearest_adjoint(const NearestAxis& axis) {
  struct Tap {
    int64_t low, high;
    acc_t low_weight, high_weight;
  };
  return adjoint_axis<acc_t>(axis.in_size, axis.out_size, [&](int64_t output) {
    const int64_t source = axis.source(output);
    return Tap{source, source, acc_t(1), acc_t(0)};
  });
}

// Twice the height and width, the usual case: every pixel is the sum of a square of four.
template <typename acc_t, typename scalar_t>
SEGKERNELS_CLONES void sum_squares(const scalar_t* __restrict top, const scalar_t* __restrict bottom, int64_t width,
                                   int64_t channels, scalar_t* __restrict output) {
  const auto sum = [&](int64_t left, int64_t right, int64_t to) SEGKERNELS_INLINE_LAMBDA {
    store_one((to_compute<acc_t>(top[left]) + to_compute<acc_t>(bottom[left])) +
                  (to_compute<acc_t>(top[right]) + to_compute<acc_t>(bottom[right])),
              output + to);
  };
  if (channels == 1) {
    for (int64_t x = 0; x < width; ++x) {
      sum(2 * x, 2 * x + 1, x);
    }
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < channels; ++c) {
      sum(2 * x * channels + c, (2 * x + 1) * channels + c, x * channels + c);
    }
  }
}

template <typename acc_t, typename scalar_t>
void gather_squares(const Upsample2dShape& s, const scalar_t* grad_output, scalar_t* grad_input) {
  const int64_t images = s.channels_last ? s.batch : s.planes();
  const int64_t step = s.channels_last ? s.channels : 1;  // values of one pixel
  const int64_t out_row = s.out_w * step;
  parallel_items(images * s.in_h, 2 * out_row, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {  // grad_output's rows come in pairs, across images too
      const scalar_t* top = grad_output + 2 * row * out_row;
      prefetch<false>(top + 2 * out_row, row + 1 < end ? 2 * out_row : 0);
      sum_squares<acc_t>(top, top + out_row, s.in_w, step, grad_input + row * s.in_w * step);
    }
  });
}

Tensor upsample_nearest2d_backward_cpu(const Tensor& grad_output,  // [N, C, H, W]
                                       std::vector<int64_t> input_size, std::optional<double> scales_h,
                                       std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_backward_shape("upsample_nearest2d_backward", grad_output, input_size);
  const Tensor grad = to_dense(grad_output, s.channels_last);
  Tensor grad_input = empty_nchw(s.batch, s.channels, s.in_h, s.in_w, grad.scalar_type(), grad, s.channels_last);
  dispatch_floating(grad.scalar_type(), "upsample_nearest2d_backward", [&]<typename scalar_t>() {
    using acc_t = accumulate_t<scalar_t>;
    const NearestAxis rows = nearest_axis(s.in_h, s.out_h, scales_h);
    const NearestAxis cols = nearest_axis(s.in_w, s.out_w, scales_w);
    const scalar_t* from = static_cast<const scalar_t*>(grad.const_data_ptr());
    scalar_t* to = static_cast<scalar_t*>(grad_input.mutable_data_ptr());
    if (rows.whole_factor() == 2 && cols.whole_factor() == 2) {
      gather_squares<acc_t>(s, from, to);
    } else {
      gather_gradient<false>(s, nearest_adjoint<acc_t>(rows), nearest_adjoint<acc_t>(cols), from, to);
    }
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("upsample_nearest2d", TORCH_BOX(&upsample_nearest2d_cpu));
  m.impl("upsample_nearest2d_backward", TORCH_BOX(&upsample_nearest2d_backward_cpu));
}

}  // namespace segkernels
