// RoI pooling on the CPU: forward by box, backward by channel of an image, so that no two threads share a sum.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/loss_blocks.h"
#include "../common/parallel.h"
#include "../common/roi_pool.h"

namespace segkernels {
namespace {

using IntList = std::vector<int64_t>;

template <typename T>
void bin_ranges(T low, T high, T scale, int64_t bins, int64_t size, std::vector<PixelRange>& ranges) {
  const PoolAxis<T> axis(low, high, scale, bins);
  ranges.resize(bins);
  for (int64_t b = 0; b < bins; ++b) {
    ranges[b] = axis.pixels(b, size);
  }
}

template <typename T>
std::vector<T> checked_boxes(const char* op, const Tensor& boxes, int64_t batch) {
  check_dim(boxes, 2, op, "boxes");
  STD_TORCH_CHECK(boxes.size(1) == 5, op, ": expected boxes of shape [K, 5], got ", shape_string(boxes));
  const Tensor dense = torch::stable::contiguous(boxes);
  std::vector<T> values(boxes.numel());
  dispatch_floating(dense.scalar_type(), op, [&]<typename box_t>() {
    load_values(static_cast<const box_t*>(dense.const_data_ptr()), 1, boxes.numel(), values.data());
  });
  for (int64_t k = 0; k < boxes.size(0); ++k) {
    STD_TORCH_CHECK(box_image(values[k * 5], batch) >= 0, op, ": expected boxes to name an image from 0 to ", batch - 1,
                    ", got ", static_cast<double>(values[k * 5]), " in box ", k);
  }
  return values;
}

// Element strides of a channel and of a pixel.
struct Layout {
  int64_t channel, pixel;
};

Layout layout_of(bool channels_last, int64_t channels, int64_t plane) {
  return channels_last ? Layout{1, channels} : Layout{plane, 1};
}

std::tuple<Tensor, Tensor> roi_pool_cpu(const Tensor& input,  // [N, C, H, W]
                                        const Tensor& boxes,  // [K, 5]
                                        IntList output_size, double spatial_scale) {
  check_dim(input, 4, "roi_pool", "input");
  const bool channels_last = is_channels_last(input);
  const Tensor map = to_dense(input, channels_last);
  const int64_t count = boxes.size(0), channels = input.size(1), height = input.size(2), width = input.size(3);
  const int64_t bins_h = output_size[0], bins_w = output_size[1];
  STD_TORCH_CHECK(bins_h > 0 && bins_w > 0, "roi_pool: expected output_size of at least 1, got ", bins_h, "x", bins_w);
  Tensor output = empty_nchw(count, channels, bins_h, bins_w, input.scalar_type(), input, channels_last);
  Tensor argmax = empty_nchw(count, channels, bins_h, bins_w, ScalarType::Long, input, channels_last);
  const Layout in = layout_of(channels_last, channels, height * width);
  const Layout out = layout_of(channels_last, channels, bins_h * bins_w);
  dispatch_floating(input.scalar_type(), "roi_pool", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> values = checked_boxes<T>("roi_pool", boxes, input.size(0));
    const scalar_t* const from = static_cast<const scalar_t*>(map.const_data_ptr());
    scalar_t* const to = static_cast<scalar_t*>(output.mutable_data_ptr());
    int64_t* const places = static_cast<int64_t*>(argmax.mutable_data_ptr());
    parallel_items(count, channels * bins_h * bins_w * 4, [&](int64_t begin, int64_t end) {
      std::vector<PixelRange> rows, columns;
      for (int64_t k = begin; k < end; ++k) {
        const T* box = values.data() + k * 5;
        const T scale = static_cast<T>(spatial_scale);
        bin_ranges(box[2], box[4], scale, bins_h, height, rows);
        bin_ranges(box[1], box[3], scale, bins_w, width, columns);
        const scalar_t* const image = from + box_image(box[0], input.size(0)) * channels * height * width;
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t bin = 0; bin < bins_h * bins_w; ++bin) {
            const PixelRange row = rows[bin / bins_w], column = columns[bin % bins_w];
            T best = 0;
            int64_t place = -1;
            for (int64_t y = row.begin; y < row.end; ++y) {
              for (int64_t x = column.begin; x < column.end; ++x) {
                const T value = to_compute<T>(image[c * in.channel + (y * width + x) * in.pixel]);
                if (place < 0 || value > best || (std::isnan(value) && !std::isnan(best))) {
                  best = value;
                  place = y * width + x;
                }
              }
            }
            const int64_t entry = k * channels * bins_h * bins_w + c * out.channel + bin * out.pixel;
            to[entry] = static_cast<scalar_t>(best);
            places[entry] = place;
          }
        }
      }
    });
  });
  return {output, argmax};
}

Tensor roi_pool_backward_cpu(const Tensor& grad_output,  // [K, C, PH, PW]
                             const Tensor& argmax,       // [K, C, PH, PW]
                             const Tensor& boxes,        // [K, 5]
                             double /*spatial_scale*/,   // for kernels that look up which boxes reach a pixel
                             int64_t batch, int64_t height, int64_t width, bool channels_last) {
  check_dim(grad_output, 4, "roi_pool_backward", "grad_output");
  check_same_shape(grad_output, argmax, "roi_pool_backward", "grad_output", "argmax");
  const bool grad_last = is_channels_last(grad_output);
  const Tensor grad = to_dense(grad_output, grad_last);
  const Tensor places = to_dense(argmax, grad_last);
  const int64_t count = grad.size(0), channels = grad.size(1), bins = grad.size(2) * grad.size(3);
  STD_TORCH_CHECK(boxes.size(0) == count, "roi_pool_backward: expected ", count, " boxes, got ", shape_string(boxes));
  const int64_t plane = height * width;
  Tensor grad_input = empty_nchw(batch, channels, height, width, grad.scalar_type(), grad, channels_last);
  const Layout from = layout_of(grad_last, channels, bins);
  const Layout to = layout_of(channels_last, channels, plane);
  dispatch_floating(grad.scalar_type(), "roi_pool_backward", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> values = checked_boxes<T>("roi_pool_backward", boxes, batch);
    const scalar_t* const grads = static_cast<const scalar_t*>(grad.const_data_ptr());
    const int64_t* const indices = static_cast<const int64_t*>(places.const_data_ptr());
    scalar_t* const out = static_cast<scalar_t*>(grad_input.mutable_data_ptr());
    parallel_items(batch * channels, plane + count * bins, [&](int64_t begin, int64_t end) {
      std::vector<T> sums(plane);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item / channels, c = item % channels;
        std::fill(sums.begin(), sums.end(), T(0));
        for (int64_t k = 0; k < count; ++k) {
          if (box_image(values[k * 5], batch) != n) {
            continue;
          }
          for (int64_t bin = 0; bin < bins; ++bin) {
            const int64_t entry = k * channels * bins + c * from.channel + bin * from.pixel;
            if (indices[entry] >= 0 && indices[entry] < plane) {
              sums[indices[entry]] += to_compute<T>(grads[entry]);
            }
          }
        }
        store_values(sums.data(), to.pixel, plane, out + n * channels * plane + c * to.channel);
      }
    });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cpu));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward_cpu));
}

}  // namespace segkernels
