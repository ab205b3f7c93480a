// RoI pooling on the GPU: forward a thread for each bin and channel; backward the pixels of a tile gather from the
// boxes that reach it, in their order. No atomics, bit-equal between runs.
#include "../common/roi_pool.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "roi_align_boxes.cuh"

namespace segkernels {
namespace {

template <typename scalar_t, typename T>
__global__ void roi_pool_fwd_kernel(const scalar_t* input,  // [N, C, H, W]
                                    const T* boxes,         // [K, 5]
                                    scalar_t* output,       // [K, C, PH, PW]
                                    int64_t* argmax,        // [K, C, PH, PW]
                                    int64_t count, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                    T scale, int64_t bins_h, int64_t bins_w, int64_t chunks, bool channels_last) {
  const int64_t bins = bins_h * bins_w, plane = height * width;
  const Layout in = layout_of(channels_last, channels, plane), out = layout_of(channels_last, channels, bins);
  for (int64_t work = blockIdx.x; work < count * chunks; work += gridDim.x) {
    const int64_t k = work / chunks;
    const int64_t item = (work - k * chunks) * blockDim.x + threadIdx.x;  // in the order of memory
    if (item >= channels * bins) {
      continue;
    }
    const int64_t c = channels_last ? item % channels : item / bins;
    const int64_t bin = channels_last ? item / channels : item - c * bins;
    const int64_t bin_y = bin / bins_w;
    const T* const box = boxes + k * 5;
    const int64_t image = box_image(box[0], batch);
    T best = 0;
    int64_t place = -1;
    if (image >= 0) {
      const PixelRange rows = PoolAxis<T>(box[2], box[4], scale, bins_h).pixels(bin_y, height);
      const PixelRange columns = PoolAxis<T>(box[1], box[3], scale, bins_w).pixels(bin - bin_y * bins_w, width);
      const scalar_t* const from = input + image * channels * plane + c * in.channel;
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        for (int64_t x = columns.begin; x < columns.end; ++x) {
          const T value = static_cast<T>(from[(y * width + x) * in.pixel]);
          if (place < 0 || value > best || (isnan(value) && !isnan(best))) {
            best = value;
            place = y * width + x;
          }
        }
      }
    }
    const int64_t entry = k * channels * bins + c * out.channel + bin * out.pixel;
    output[entry] = static_cast<scalar_t>(best);
    argmax[entry] = place;
  }
}

constexpr int kPoolTile = 8;                                            // pixels a side of a tile
constexpr int kPoolSlab = kThreads / (kPoolTile * kPoolTile) * kGroup;  // channels of a block

// Bins that may hold a pixel, one more on either side: their ranges decide.
template <typename T>
__device__ __forceinline__ PixelRange candidate_bins(const PoolAxis<T>& axis, int64_t pixel, int64_t bins) {
  const T first = floor(static_cast<T>(pixel - axis.start) / axis.bin) - T(2);
  const T last = ceil(static_cast<T>(pixel - axis.start + 1) / axis.bin) + T(2);
  return {first > T(0) ? (first < static_cast<T>(bins) ? static_cast<int64_t>(first) : bins) : 0,
          last > T(0) ? (last < static_cast<T>(bins) ? static_cast<int64_t>(last) : bins) : 0};
}

__device__ __forceinline__ bool holds(const PixelRange& range, int64_t pixel) {
  return pixel >= range.begin && pixel < range.end;
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    roi_pool_bwd_kernel(const scalar_t* grad_output,  // [K, C, PH, PW]
                        const int64_t* argmax,        // [K, C, PH, PW]
                        const T* boxes,               // [K, 5]
                        scalar_t* grad_input,         // [N, C, H, W]
                        int64_t count, int64_t batch, int64_t channels, int64_t height, int64_t width, T scale,
                        int64_t bins_h, int64_t bins_w, int64_t blocks, bool grad_last, bool channels_last) {
  __shared__ int list[kThreads];
  __shared__ int counts[kThreads / 32];
  constexpr int kGroups = kPoolSlab / kGroup;
  const int thread = threadIdx.x;
  const int pixel = channels_last ? thread / kGroups : thread % (kPoolTile * kPoolTile);
  const int group = channels_last ? thread % kGroups : thread / (kPoolTile * kPoolTile);
  const int64_t slabs = (channels + kPoolSlab - 1) / kPoolSlab, bins = bins_h * bins_w, plane = height * width;
  const int64_t tiles_h = (height + kPoolTile - 1) / kPoolTile, tiles_w = (width + kPoolTile - 1) / kPoolTile;
  const Layout from = layout_of(grad_last, channels, bins), to = layout_of(channels_last, channels, plane);
  for (int64_t work = blockIdx.x; work < blocks; work += gridDim.x) {
    int64_t rest = work / slabs;
    const int64_t slab = work - rest * slabs;
    const int64_t left = rest % tiles_w * kPoolTile;
    rest /= tiles_w;
    const int64_t top = rest % tiles_h * kPoolTile;
    const int64_t image = rest / tiles_h;
    const int64_t y = top + pixel / kPoolTile, x = left + pixel % kPoolTile;
    const int64_t c = slab * kPoolSlab + group * kGroup;
    const int held = y < height && x < width
                         ? static_cast<int>(max(int64_t{0}, min(static_cast<int64_t>(kGroup), channels - c)))
                         : 0;
    T sum[kGroup] = {};
    for (int64_t base = 0; base < count; base += kThreads) {
      bool reaches = false;
      if (base + thread < count) {
        const T* const box = boxes + (base + thread) * 5;
        const PoolAxis<T> rows(box[2], box[4], scale, bins_h), columns(box[1], box[3], scale, bins_w);
        reaches = box_image(box[0], batch) == image && rows.pixels(bins_h - 1, height).end > top &&
                  rows.pixels(0, height).begin < top + kPoolTile && columns.pixels(bins_w - 1, width).end > left &&
                  columns.pixels(0, width).begin < left + kPoolTile;
      }
      const int reaching = gather_in_order(reaches, thread, list, counts);
      for (int i = 0; i < reaching && held > 0; ++i) {
        const int64_t k = base + list[i];
        const T* const box = boxes + k * 5;
        const PoolAxis<T> rows(box[2], box[4], scale, bins_h), columns(box[1], box[3], scale, bins_w);
        const PixelRange range_y = candidate_bins(rows, y, bins_h), range_x = candidate_bins(columns, x, bins_w);
        for (int64_t by = range_y.begin; by < range_y.end; ++by) {
          if (!holds(rows.pixels(by, height), y)) {
            continue;
          }
          for (int64_t bx = range_x.begin; bx < range_x.end; ++bx) {
            if (!holds(columns.pixels(bx, width), x)) {
              continue;
            }
            const int64_t entry = k * channels * bins + c * from.channel + (by * bins_w + bx) * from.pixel;
#pragma unroll
            for (int g = 0; g < kGroup; ++g) {
              if (g < held && argmax[entry + g * from.channel] == y * width + x) {
                sum[g] += static_cast<T>(grad_output[entry + g * from.channel]);
              }
            }
          }
        }
      }
      __syncthreads();  // before the next boxes take the list
    }
    store_group(grad_input + image * channels * plane + c * to.channel + (y * width + x) * to.pixel,
                Layout{to.channel, to.pixel, false}, held, sum);
  }
}

std::tuple<Tensor, Tensor> roi_pool_cuda(const Tensor& input,  // [N, C, H, W]
                                         const Tensor& boxes,  // [K, 5]
                                         IntList output_size, double spatial_scale) {
  check_dim(input, 4, "roi_pool", "input");
  const int64_t bins_h = output_size[0], bins_w = output_size[1];
  check_rois(boxes, {bins_h, bins_w, 1, false}, "roi_pool");
  const bool channels_last = is_channels_last(input);
  const Tensor map = to_dense(input, channels_last);
  const int64_t count = boxes.size(0), channels = input.size(1);
  Tensor output = empty_nchw(count, channels, bins_h, bins_w, input.scalar_type(), input, channels_last);
  Tensor argmax = empty_nchw(count, channels, bins_h, bins_w, ScalarType::Long, input, channels_last);
  if (output.numel() == 0) {
    return {output, argmax};
  }
  const int64_t chunks = (channels * bins_h * bins_w + kThreads - 1) / kThreads;
  const DeviceScope scope(input);
  dispatch_floating(input.scalar_type(), "roi_pool", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Tensor rois = to_coordinates(boxes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
    launch(roi_pool_fwd_kernel<scalar_t, T>, blocks_for(count * chunks, 1), kThreads, 0, scope.stream(),
           static_cast<const scalar_t*>(map.const_data_ptr()), static_cast<const T*>(rois.const_data_ptr()),
           static_cast<scalar_t*>(output.mutable_data_ptr()), static_cast<int64_t*>(argmax.mutable_data_ptr()), count,
           input.size(0), channels, input.size(2), input.size(3), static_cast<T>(spatial_scale), bins_h, bins_w, chunks,
           channels_last);
  });
  return {output, argmax};
}

Tensor roi_pool_backward_cuda(const Tensor& grad_output,  // [K, C, PH, PW]
                              const Tensor& argmax,       // [K, C, PH, PW]
                              const Tensor& boxes,        // [K, 5]
                              double spatial_scale, int64_t batch, int64_t height, int64_t width, bool channels_last) {
  const char* const op = "roi_pool_backward";
  check_dim(grad_output, 4, op, "grad_output");
  check_same_shape(grad_output, argmax, op, "grad_output", "argmax");
  const int64_t count = grad_output.size(0), channels = grad_output.size(1);
  const int64_t bins_h = grad_output.size(2), bins_w = grad_output.size(3);
  check_rois(boxes, {bins_h, bins_w, 1, false}, op);
  STD_TORCH_CHECK(boxes.size(0) == count, op, ": expected ", count, " boxes, got ", shape_string(boxes));
  const bool grad_last = is_channels_last(grad_output);
  const Tensor grad = to_dense(grad_output, grad_last);
  const Tensor places = to_dense(argmax, grad_last);
  Tensor grad_input = empty_nchw(batch, channels, height, width, grad.scalar_type(), grad, channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  const int64_t blocks = batch * ((height + kPoolTile - 1) / kPoolTile) * ((width + kPoolTile - 1) / kPoolTile) *
                         ((channels + kPoolSlab - 1) / kPoolSlab);
  const DeviceScope scope(grad);
  dispatch_floating(grad.scalar_type(), op, [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Tensor rois = to_coordinates(boxes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
    launch(roi_pool_bwd_kernel<scalar_t, T>, blocks_for(blocks, 1), kThreads, 0, scope.stream(),
           static_cast<const scalar_t*>(grad.const_data_ptr()), static_cast<const int64_t*>(places.const_data_ptr()),
           static_cast<const T*>(rois.const_data_ptr()), static_cast<scalar_t*>(grad_input.mutable_data_ptr()), count,
           batch, channels, height, width, static_cast<T>(spatial_scale), bins_h, bins_w, blocks, grad_last,
           channels_last);
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cuda));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward_cuda));
}

}  // namespace segkernels
