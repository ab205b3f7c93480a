// RoI Align on the CPU, forward; see roi_align_boxes.h.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "../common/simd.h"
#include "../common/transpose.h"
#include "roi_align_boxes.h"

namespace segkernels {
namespace {

constexpr int64_t kPackChannels = 32;  // packed together: whole cache lines are written

// Bins of rows [first_row, last_row) of one box: tile[bin][channel], for `count` channels from `image` on.
template <typename scalar_t, typename T>
SEGKERNELS_CLONES void pool_bins(const scalar_t* image, int64_t width, int64_t stride, int64_t count,
                                 const BoxPlan<T>& plan, const RoiAlignParams& p, int64_t first_row, int64_t last_row,
                                 T* tile, int64_t tile_stride) {
  using V = typename ChannelVector<T>::type;
  constexpr int64_t lanes = ChannelVector<T>::lanes;
  const auto load = [](const scalar_t* from) SEGKERNELS_INLINE_LAMBDA {
    V value;
    if constexpr (std::is_same_v<scalar_t, T>) {
      std::memcpy(&value, from, sizeof(V));
    } else {
      for (int64_t i = 0; i < lanes; ++i) {
        value[i] = to_compute<T>(from[i]);
      }
    }
    return value;
  };
  for (int64_t row_bin = first_row; row_bin < last_row; ++row_bin) {
    const Tap<T>* const rows_begin = plan.begin(row_bin);
    const Tap<T>* const rows_end = plan.end(row_bin);
    for (int64_t column_bin = 0; column_bin < p.bins_w; ++column_bin, tile += tile_stride) {
      const Tap<T>* const columns_begin = plan.begin(p.bins_h + column_bin);
      const Tap<T>* const columns_end = plan.end(p.bins_h + column_bin);
      int64_t c = 0;
      if (count == kChannels<T>) {
        V sum[kVectors] = {};
        for (const Tap<T>* row = rows_begin; row != rows_end; ++row) {
          const scalar_t* line = image + row->index * width * stride;
          for (const Tap<T>* column = columns_begin; column != columns_end; ++column) {
            const T weight = row->weight * column->weight;
            const scalar_t* pixel = line + column->index * stride;
            for (int64_t v = 0; v < kVectors; ++v) {
              sum[v] += weight * load(pixel + v * lanes);
            }
          }
        }
        std::memcpy(tile, sum, sizeof(sum));
        continue;
      }
      for (; c + lanes <= count; c += lanes) {
        V sum{};
        for (const Tap<T>* row = rows_begin; row != rows_end; ++row) {
          const scalar_t* line = image + row->index * width * stride + c;
          for (const Tap<T>* column = columns_begin; column != columns_end; ++column) {
            sum += row->weight * column->weight * load(line + column->index * stride);
          }
        }
        std::memcpy(tile + c, &sum, sizeof(V));
      }
      for (; c < count; ++c) {
        T sum = 0;
        for (const Tap<T>* row = rows_begin; row != rows_end; ++row) {
          const scalar_t* line = image + row->index * width * stride + c;
          for (const Tap<T>* column = columns_begin; column != columns_end; ++column) {
            sum += row->weight * column->weight * to_compute<T>(line[column->index * stride]);
          }
        }
        tile[c] = sum;
      }
    }
  }
}

// Touched segments of `count` channels from `first` on of dense NCHW maps as to[N, H*W, stride] in T, the others left
// as they are.
template <typename scalar_t, typename T>
void pack_map(const scalar_t* from, const FeatureMap& map, const std::vector<uint8_t>& touched, int64_t batch,
              int64_t channels, int64_t first, int64_t count, int64_t stride, T* to) {
  const int64_t segments = map.segments();
  parallel_items(batch * segments, kPixels * count, [&](int64_t begin, int64_t end) {
    T rows[kPackChannels * kPixels];
    for (int64_t item = begin; item < end; ++item) {
      if (!touched[item]) {
        continue;
      }
      const int64_t n = item / segments;
      const int64_t pixel = item % segments * kPixels;
      const int64_t pixels = std::min(kPixels, map.pixels() - pixel);
      T* const target = to + (n * map.pixels() + pixel) * stride;
      for (int64_t c = 0; c < count; c += kPackChannels) {
        const int64_t group = std::min(kPackChannels, count - c);
        const scalar_t* source = from + (n * channels + first + c) * map.pixels() + pixel;
        if constexpr (std::is_same_v<scalar_t, T>) {
          transpose(source, map.pixels(), group, pixels, target + c, stride);
        } else {
          for (int64_t g = 0; g < group; ++g) {
            load_values(source + g * map.pixels(), 1, pixels, rows + g * kPixels);
          }
          transpose(static_cast<const T*>(rows), kPixels, group, pixels, target + c, stride);
        }
      }
    }
  });
}

// One map as pool_bins reads it.
template <typename T>
struct Channels {
  const T* data;
  int64_t stride;  // of a pixel
};

template <typename scalar_t, typename T>
void pool_box(const Channels<scalar_t>& map, const FeatureMap& size, int64_t channels, const BoxPlan<T>& plan,
              const RoiAlignParams& p, bool channels_last, T* tile, T* rows, void* output, ScalarType dtype) {
  const int64_t bins = p.bins_h * p.bins_w;
  const int64_t step = tile_rows(p);
  const scalar_t* const image = map.data + plan.image * size.pixels() * map.stride;
  dispatch_floating(dtype, "roi_align", [&]<typename out_t>() {
    if constexpr (std::is_same_v<accumulate_t<out_t>, T>) {
      out_t* const out = static_cast<out_t*>(output);
      for (int64_t c = 0; c < channels; c += kChannels<T>) {
        const int64_t count = std::min(kChannels<T>, channels - c);
        for (int64_t row = 0; row < p.bins_h; row += step) {
          const int64_t last = std::min(row + step, p.bins_h);
          const int64_t first_bin = row * p.bins_w;
          const int64_t group = (last - row) * p.bins_w;
          if constexpr (std::is_same_v<out_t, T>) {
            if (channels_last) {
              pool_bins(image + c, size.width, map.stride, count, plan, p, row, last, out + first_bin * channels + c,
                        channels);
              continue;
            }
          }
          pool_bins(image + c, size.width, map.stride, count, plan, p, row, last, tile, kChannels<T>);
          if (channels_last) {
            for (int64_t bin = 0; bin < group; ++bin) {
              store_values(tile + bin * kChannels<T>, 1, count, out + (first_bin + bin) * channels + c);
            }
          } else if constexpr (std::is_same_v<out_t, T>) {
            transpose(static_cast<const T*>(tile), kChannels<T>, group, count, out + c * bins + first_bin, bins);
          } else {
            transpose(static_cast<const T*>(tile), kChannels<T>, group, count, rows, group);
            for (int64_t i = 0; i < count; ++i) {
              store_values(rows + i * group, 1, group, out + (c + i) * bins + first_bin);
            }
          }
        }
      }
    }
  });
}

// `count` channels from `first` on of the output; `maps_of` are their maps, all channels where it is channels_last.
// Packed maps have scalar_t == T whatever the dtype of the features.
template <typename scalar_t, typename T>
void pool_all(const std::vector<Channels<scalar_t>>& maps_of, const std::vector<FeatureMap>& maps,
              const std::vector<BoxPlan<T>>& plans, const RoiAlignParams& p, bool channels_last, int64_t first,
              int64_t count, Tensor& output) {
  const int64_t plane = p.bins_h * p.bins_w * static_cast<int64_t>(output.element_size());
  char* const out = static_cast<char*>(output.mutable_data_ptr()) + first * plane;
  const int64_t step = output.size(1) * plane;
  const ScalarType dtype = output.scalar_type();
  parallel_items(output.size(0), count * p.bins_h * p.bins_w * 4, [&](int64_t begin, int64_t end) {
    std::vector<T> tile(tile_rows(p) * p.bins_w * kChannels<T>);
    std::vector<T> rows(tile.size());
    for (int64_t k = begin; k < end; ++k) {
      const BoxPlan<T>& plan = plans[k];
      if (plan.level < 0) {
        std::memset(out + k * step, 0, count * plane);
        continue;
      }
      pool_box(maps_of[plan.level], maps[plan.level], count, plan, p, channels_last, tile.data(), rows.data(),
               out + k * step, dtype);
    }
  });
}

}  // namespace

Tensor pool_boxes(const char* op, const std::vector<Tensor>& features, const Tensor& boxes,
                  const std::vector<double>& scales, const RoiAlignParams& p, const PyramidParams& pyramid) {
  const Tensor& first = features[0];
  check_dim(boxes, 2, op, "boxes");
  STD_TORCH_CHECK(boxes.size(1) == 5, op, ": expected boxes of shape [K, 5], got ", shape_string(boxes));
  STD_TORCH_CHECK(p.bins_h > 0 && p.bins_w > 0, op, ": expected output_size of at least 1, got ", p.bins_h, "x",
                  p.bins_w);
  STD_TORCH_CHECK(scales.size() == features.size(), op, ": expected one scale for each of ", features.size(), " maps");
  const bool channels_last = is_channels_last(first);
  const int64_t batch = first.size(0), channels = first.size(1);
  std::vector<FeatureMap> maps;
  std::vector<Tensor> dense;
  for (size_t i = 0; i < features.size(); ++i) {
    const Tensor& map = features[i];
    check_dim(map, 4, op, "input");
    check_same_dtype(map, first, op, "the first map", "each other");
    STD_TORCH_CHECK(map.size(0) == batch && map.size(1) == channels, op,
                    ": expected maps that agree in batch and channels, got ", shape_string(first), " and ",
                    shape_string(map));
    maps.push_back({map.size(2), map.size(3), scales[i]});
    dense.push_back(to_dense(map, channels_last));
  }
  const int64_t count = boxes.size(0);
  Tensor output = empty_nchw(count, channels, p.bins_h, p.bins_w, first.scalar_type(), first, channels_last);
  dispatch_floating(first.scalar_type(), op, [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<BoxPlan<T>> plans = plan_boxes<T>(op, boxes, batch, p, pyramid, maps);
    if (output.numel() == 0) {
      return;
    }
    if (channels_last) {
      std::vector<Channels<scalar_t>> sources;
      for (const Tensor& map : dense) {
        sources.push_back({static_cast<const scalar_t*>(map.const_data_ptr()), channels});
      }
      pool_all(sources, maps, plans, p, channels_last, 0, channels, output);
      return;
    }
    const auto touched = touched_segments(plans, batch, p, maps);
    // A tile's channels at a time: the packed copy of a pyramid would be larger than the result.
    constexpr int64_t lanes = ChannelVector<T>::lanes;
    const int64_t stride = std::min(kChannels<T>, (channels + lanes - 1) / lanes * lanes);
    const ScalarType dtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
    std::vector<Tensor> packed;
    std::vector<Channels<T>> sources;
    for (const FeatureMap& map : maps) {
      packed.push_back(empty({batch * map.pixels() * stride}, dtype, first));
      sources.push_back({static_cast<const T*>(packed.back().const_data_ptr()), stride});
    }
    for (int64_t c = 0; c < channels; c += stride) {
      const int64_t group = std::min(stride, channels - c);
      for (size_t i = 0; i < maps.size(); ++i) {
        pack_map(static_cast<const scalar_t*>(dense[i].const_data_ptr()), maps[i], touched[i], batch, channels, c,
                 group, stride, static_cast<T*>(packed[i].mutable_data_ptr()));
      }
      pool_all(sources, maps, plans, p, channels_last, c, group, output);
    }
  });
  return output;
}

namespace {

Tensor roi_align_cpu(const Tensor& input,  // [N, C, H, W]
                     const Tensor& boxes,  // [K, 5]
                     IntList output_size, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  check_dim(input, 4, "roi_align", "input");
  return pool_boxes("roi_align", {input}, boxes, {spatial_scale},
                    {output_size[0], output_size[1], sampling_ratio, aligned}, {1, 0, 0, 0, 0});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align_cpu));
}

}  // namespace segkernels
