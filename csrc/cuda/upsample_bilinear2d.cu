// Bilinear resampling on the GPU. Forward, a thread keeps the two source rows between which it is, stretched to its own
// columns, in registers: a source element is loaded once or twice a strip and not for each of its outputs.
#include "../common/bilinear.h"

#include <torch/csrc/stable/library.h>

#include "upsample_adjoint.cuh"

namespace segkernels {
namespace {

// Enlarging fourfold this is half a load, five multiplications and additions and a quarter of a store per float: far
// less than a GPU does in the time that memory takes to write it.
template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    upsample_bilinear2d_fwd_kernel(RowStrips s, BilinearAxis<T> rows, BilinearAxis<T> columns,
                                   const scalar_t* __restrict__ input,  // [N, C, h, w]
                                   scalar_t* __restrict__ output) {     // [N, C, H, W]
  constexpr int kOwn = kWide<scalar_t>;
  with_strip<scalar_t>(s, [&](int64_t image, int begin, int end, const OwnElements& own) {
    int low[kOwn], high[kOwn];
    T low_weight[kOwn], high_weight[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const ElementPlace element(s, own, k);
      const BilinearTap<T> tap = columns.tap(element.x);
      low[k] = static_cast<int>(tap.low) * s.channels + element.c;
      high[k] = static_cast<int>(tap.high) * s.channels + element.c;
      low_weight[k] = tap.low_weight;
      high_weight[k] = tap.high_weight;
    }
    const auto stretch = [&](int row, T(&stretched)[kOwn]) {
      const scalar_t* from = input + (image * s.in_h + row) * s.in_row;
      const Wide<scalar_t> left = load_elements(s, from, low);
      const Wide<scalar_t> right = load_elements(s, from, high);
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        stretched[k] =
            static_cast<T>(left.values[k]) * low_weight[k] + static_cast<T>(right.values[k]) * high_weight[k];
      }
    };
    T upper[kOwn], lower[kOwn];
    int upper_row = -1, lower_row = -1;  // the source rows that they hold
    for (int y = begin; y < end; ++y) {
      const BilinearTap<T> tap = rows.tap(y);
      const int above = static_cast<int>(tap.low), below = static_cast<int>(tap.high);
      if (above != upper_row) {
        upper_row = above;
        if (above == lower_row) {
#pragma unroll
          for (int k = 0; k < kOwn; ++k) {
            upper[k] = lower[k];
          }
        } else {
          stretch(above, upper);
        }
      }
      if (below != lower_row) {
        lower_row = below;
        stretch(below, lower);
      }
      Wide<scalar_t> blended;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        blended.values[k] = static_cast<scalar_t>(upper[k] * tap.low_weight + lower[k] * tap.high_weight);
      }
      store_elements(s, output + (image * s.out_h + y) * s.out_row, own, blended);
    }
  });
}

Tensor upsample_bilinear2d_cuda(const Tensor& input,  // [N, C, h, w]
                                std::vector<int64_t> output_size, bool align_corners, std::optional<double> scales_h,
                                std::optional<double> scales_w) {
  const Upsample2dShape shape = upsample2d_shape("upsample_bilinear2d", input, output_size);
  const Tensor source = to_dense(input, shape.channels_last);
  Tensor output = empty_nchw(shape.batch, shape.channels, shape.out_h, shape.out_w, input.scalar_type(), input,
                             shape.channels_last);
  if (output.numel() == 0) {
    return output;
  }
  check_rows(shape, "upsample_bilinear2d");
  const DeviceScope scope(input);
  dispatch_floating(input.scalar_type(), "upsample_bilinear2d", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const scalar_t* from = static_cast<const scalar_t*>(source.const_data_ptr());
    scalar_t* to = static_cast<scalar_t*>(output.mutable_data_ptr());
    const auto rows = bilinear_axis<T>(shape.in_h, shape.out_h, align_corners, scales_h);
    const auto columns = bilinear_axis<T>(shape.in_w, shape.out_w, align_corners, scales_w);
    RowStrips s(shape, from, to);
    s.for_each_launch(shape.images(), [&](dim3 grid) {
      launch(upsample_bilinear2d_fwd_kernel<scalar_t, T>, grid, s.block, 0, scope.stream(), s, rows, columns, from, to);
    });
  });
  return output;
}

Tensor upsample_bilinear2d_backward_cuda(const Tensor& grad_output,  // [N, C, H, W]
                                         std::vector<int64_t> input_size, bool align_corners,
                                         std::optional<double> scales_h, std::optional<double> scales_w) {
  const Upsample2dShape shape = upsample2d_backward_shape("upsample_bilinear2d_backward", grad_output, input_size);
  const Tensor grad = to_dense(grad_output, shape.channels_last);
  Tensor grad_input =
      empty_nchw(shape.batch, shape.channels, shape.in_h, shape.in_w, grad.scalar_type(), grad, shape.channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  check_rows(shape, "upsample_bilinear2d_backward");
  dispatch_floating(grad.scalar_type(), "upsample_bilinear2d_backward", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    gather_gradient<true, scalar_t>(shape, bilinear_axis<T>(shape.in_h, shape.out_h, align_corners, scales_h),
                                    bilinear_axis<T>(shape.in_w, shape.out_w, align_corners, scales_w), grad,
                                    grad_input);
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("upsample_bilinear2d", TORCH_BOX(&upsample_bilinear2d_cuda));
  m.impl("upsample_bilinear2d_backward", TORCH_BOX(&upsample_bilinear2d_backward_cuda));
}

}  // namespace segkernels
