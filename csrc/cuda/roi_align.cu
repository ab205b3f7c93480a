// RoI Align on the GPU, forward; see roi_align_boxes.cuh.
#include "roi_align_boxes.cuh"

#include <torch/csrc/stable/library.h>

namespace segkernels {
namespace {

// A thread pools one bin of one box for a group of channels: neighbours in a block are channels of a channels_last map,
// bins of another, which is how outputs lie in memory. `chunks` blocks share a box.
template <typename scalar_t, typename T>
__global__ void roi_align_fwd_kernel(Pyramid<T> pyramid, RoiAlignParams p,
                                     const T* boxes,    // [K, 5]
                                     scalar_t* output,  // [K, C, PH, PW]
                                     int64_t count, int64_t batch, int64_t channels, int chunks, bool channels_last,
                                     bool vectors) {
  const int bins = static_cast<int>(p.bins_h * p.bins_w);
  const int groups = static_cast<int>((channels + kGroup - 1) / kGroup);
  const Layout out = channels_last ? Layout{1, channels, vectors} : Layout{bins, 1, false};
  for (int64_t work = blockIdx.x; work < count * chunks; work += gridDim.x) {
    const int64_t k = work / chunks;
    const int item = static_cast<int>(work - k * chunks) * static_cast<int>(blockDim.x) + threadIdx.x;
    const int bin = channels_last ? item / groups : item % bins;
    const int group = channels_last ? item % groups : item / bins;
    if (bin >= bins || group >= groups) {
      continue;
    }
    const T* const box = boxes + k * 5;
    const int64_t image = box_image(box[0], batch);
    const int64_t level = box_level(box[1], box[2], box[3], box[4], pyramid.params);
    const int64_t c = static_cast<int64_t>(group) * kGroup;
    const int held = static_cast<int>(min(static_cast<int64_t>(kGroup), channels - c));
    T sum[kGroup] = {};
    if (image >= 0 && level >= 0) {
      const LevelMap<T>& map = pyramid.maps[level];
      const int64_t plane = map.height * map.width;
      const Layout in = channels_last ? Layout{1, channels, vectors} : Layout{plane, 1, false};
      const scalar_t* const from = static_cast<const scalar_t*>(map.data) + image * channels * plane + c * in.channel;
      const SampleAxis<T> rows = sample_axis(box[2], box[4], map.scale, p.bins_h, p);
      const SampleAxis<T> columns = sample_axis(box[1], box[3], map.scale, p.bins_w, p);
      const int bin_y = bin / static_cast<int>(p.bins_w);
      const int bin_x = bin - bin_y * static_cast<int>(p.bins_w);
      const SampleRange range_y = sample_range(rows, bin_y, map.height);
      const SampleRange range_x = sample_range(columns, bin_x, map.width);
      const T scale = T(1) / sample_count<T>(rows.samples, columns.samples);
      for (int64_t i = range_y.begin; i < range_y.end; ++i) {
        SampleTap<T> y;
        if (!sample_tap(rows.position(bin_y, i), map.height, y)) {
          continue;
        }
        for (int64_t j = range_x.begin; j < range_x.end; ++j) {
          SampleTap<T> x;
          if (!sample_tap(columns.position(bin_x, j), map.width, x)) {
            continue;
          }
          const auto add = [&](int64_t row, int64_t column, T weight) {
            T values[kGroup];
            load_group(from + (row * map.width + column) * in.pixel, in, held, values);
#pragma unroll
            for (int g = 0; g < kGroup; ++g) {
              sum[g] += weight * values[g];
            }
          };
          add(y.low, x.low, y.low_weight * x.low_weight);
          add(y.low, x.high, y.low_weight * x.high_weight);
          add(y.high, x.low, y.high_weight * x.low_weight);
          add(y.high, x.high, y.high_weight * x.high_weight);
        }
      }
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        sum[g] *= scale;
      }
    }
    store_group(output + k * channels * bins + c * out.channel + bin * out.pixel, out, held, sum);
  }
}

// Over the maps of a pyramid; one map is a pyramid of one level.
Tensor pool_boxes(const char* op, const std::vector<Tensor>& features, const Tensor& boxes,
                  const std::vector<double>& scales, const RoiAlignParams& p, const PyramidParams& pyramid_params) {
  check_rois(boxes, p, op);
  check_levels(features.size(), scales, op);
  const Tensor& first = features[0];
  const bool channels_last = is_channels_last(first);
  const int64_t batch = first.size(0), channels = first.size(1), count = boxes.size(0);
  std::vector<Tensor> dense;
  for (const Tensor& map : features) {
    check_dim(map, 4, op, "input");
    check_same_dtype(map, first, op, "the first map", "each other");
    STD_TORCH_CHECK(map.size(0) == batch && map.size(1) == channels, op,
                    ": expected maps that agree in batch and channels, got ", shape_string(first), " and ",
                    shape_string(map));
    dense.push_back(to_dense(map, channels_last));
  }
  Tensor output = empty_nchw(count, channels, p.bins_h, p.bins_w, first.scalar_type(), first, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  const int64_t items = p.bins_h * p.bins_w * ((channels + kGroup - 1) / kGroup);
  STD_TORCH_CHECK(items <= INT32_MAX - kThreads, op, ": expected fewer bins and channels, got ", shape_string(output));
  const DeviceScope scope(first);
  dispatch_floating(first.scalar_type(), op, [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Tensor rois = to_coordinates(boxes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
    Pyramid<T> pyramid{pyramid_params, {}};
    bool vectors = channels_last && channels % kGroup == 0 && aligned_for_vectors(output.const_data_ptr());
    for (size_t i = 0; i < dense.size(); ++i) {
      pyramid.maps[i] = {const_cast<void*>(dense[i].const_data_ptr()), dense[i].size(2), dense[i].size(3),
                         static_cast<T>(scales[i]), 0};
      vectors = vectors && aligned_for_vectors(dense[i].const_data_ptr());
    }
    const int chunks = static_cast<int>((items + kThreads - 1) / kThreads);
    launch(roi_align_fwd_kernel<scalar_t, T>, blocks_for(count * chunks, 1), kThreads, 0, scope.stream(), pyramid, p,
           static_cast<const T*>(rois.const_data_ptr()), static_cast<scalar_t*>(output.mutable_data_ptr()), count,
           batch, channels, chunks, channels_last, vectors);
  });
  return output;
}

Tensor roi_align_cuda(const Tensor& input,  // [N, C, H, W]
                      const Tensor& boxes,  // [K, 5]
                      IntList output_size, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  check_dim(input, 4, "roi_align", "input");
  return pool_boxes("roi_align", {input}, boxes, {spatial_scale},
                    {output_size[0], output_size[1], sampling_ratio, aligned}, {1, 0, 0, 0, 0});
}

Tensor multiscale_roi_align_cuda(const std::vector<Tensor>& features,  // each [N, C, H, W]
                                 const Tensor& boxes,                  // [K, 5]
                                 IntList output_size, std::vector<double> spatial_scales, int64_t sampling_ratio,
                                 bool aligned, double canonical_scale, double canonical_level) {
  const char* const op = "multiscale_roi_align";
  check_levels(features.size(), spatial_scales, op);
  check_dim(features[0], 4, op, "features");
  return pool_boxes(op, features, boxes, spatial_scales, {output_size[0], output_size[1], sampling_ratio, aligned},
                    pyramid_params(spatial_scales, canonical_scale, canonical_level));
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align_cuda));
  m.impl("roi_align", TORCH_BOX(&roi_align_cuda));
}

}  // namespace segkernels
