// The gradient of RoI Align on the CPU; see roi_align_boxes.h.
//
// Every channel of every image is summed by one thread, its boxes in order: no atomics, and the same bits for any
// number of threads.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <memory>
#include <vector>

#include "../common/simd.h"
#include "../common/transpose.h"
#include "roi_align_boxes.h"

namespace segkernels {
namespace {

// The transpose of pool_bins into a scratch image whose pixels hold a whole number of vectors.
template <typename T>
SEGKERNELS_CLONES void scatter_bins(T* image, int64_t width, int64_t stride, const BoxPlan<T>& plan,
                                    const RoiAlignParams& p, int64_t first_row, int64_t last_row, const T* tile) {
  using V = typename ChannelVector<T>::type;
  constexpr int64_t lanes = ChannelVector<T>::lanes;
  constexpr int64_t vectors = kVectors / 2;
  for (int64_t row_bin = first_row; row_bin < last_row; ++row_bin) {
    const Tap<T>* const rows_begin = plan.begin(row_bin);
    const Tap<T>* const rows_end = plan.end(row_bin);
    for (int64_t column_bin = 0; column_bin < p.bins_w; ++column_bin, tile += stride) {
      const Tap<T>* const columns_begin = plan.begin(p.bins_h + column_bin);
      const Tap<T>* const columns_end = plan.end(p.bins_h + column_bin);
      const auto scatter = [&](auto groups, int64_t c) SEGKERNELS_INLINE_LAMBDA {
        constexpr int64_t n = decltype(groups)::value;
        V grad[n];
        std::memcpy(grad, tile + c, sizeof(grad));
        for (const Tap<T>* row = rows_begin; row != rows_end; ++row) {
          T* line = image + row->index * width * stride + c;
          for (const Tap<T>* column = columns_begin; column != columns_end; ++column) {
            const T weight = row->weight * column->weight;
            T* pixel = line + column->index * stride;
            for (int64_t v = 0; v < n; ++v) {
              V value;
              std::memcpy(&value, pixel + v * lanes, sizeof(V));
              value += weight * grad[v];
              std::memcpy(pixel + v * lanes, &value, sizeof(V));
            }
          }
        }
      };
      int64_t c = 0;
      for (; c + vectors * lanes <= stride; c += vectors * lanes) {
        scatter(std::integral_constant<int64_t, vectors>(), c);
      }
      for (; c < stride; c += lanes) {
        scatter(std::integral_constant<int64_t, 1>(), c);
      }
    }
  }
}

// grad[c][bin] of one box as tile[bin][channel].
template <typename grad_t, typename T>
void load_tile(const grad_t* grad, bool channels_last, int64_t channels, int64_t bins, int64_t first_bin, int64_t group,
               int64_t count, int64_t stride, T* rows, T* tile) {
  if (channels_last) {
    for (int64_t bin = 0; bin < group; ++bin) {
      load_values(grad + (first_bin + bin) * channels, 1, count, tile + bin * stride);
    }
  } else if constexpr (std::is_same_v<grad_t, T>) {
    transpose(grad + first_bin, bins, count, group, tile, stride);
  } else {
    for (int64_t c = 0; c < count; ++c) {
      load_values(grad + c * bins + first_bin, 1, group, rows + c * group);
    }
    transpose(static_cast<const T*>(rows), group, count, group, tile, stride);
  }
}

// The scratch image of `count` channels to grad_input's layout and dtype; untouched segments are zeros.
template <typename grad_t, typename T>
void store_image(const T* image, int64_t stride, int64_t count, const FeatureMap& map, const uint8_t* touched,
                 bool channels_last, int64_t channels, grad_t* out) {
  T rows[kChannels<T> * kPixels];
  for (int64_t s = 0; s < map.segments(); ++s) {
    const int64_t pixel = s * kPixels;
    const int64_t pixels = std::min(kPixels, map.pixels() - pixel);
    const T* const from = image + pixel * stride;
    if (channels_last) {
      for (int64_t i = pixel; i < pixel + pixels; ++i) {
        if (touched[s]) {
          store_values(image + i * stride, 1, count, out + i * channels);
        } else {
          std::memset(static_cast<void*>(out + i * channels), 0, count * sizeof(grad_t));
        }
      }
    } else if (!touched[s]) {
      for (int64_t c = 0; c < count; ++c) {
        std::memset(static_cast<void*>(out + c * map.pixels() + pixel), 0, pixels * sizeof(grad_t));
      }
    } else if constexpr (std::is_same_v<grad_t, T>) {
      transpose(from, stride, pixels, count, out + pixel, map.pixels());
    } else {
      transpose(from, stride, pixels, count, static_cast<T*>(rows), pixels);
      for (int64_t c = 0; c < count; ++c) {
        store_values(rows + c * pixels, 1, pixels, out + c * map.pixels() + pixel);
      }
    }
  }
}

template <typename grad_t, typename T>
void scatter_all(const Tensor& grad_output, bool grad_channels_last, const std::vector<FeatureMap>& maps,
                 const std::vector<MapSize>& sizes, const std::vector<BoxPlan<T>>& plans, const RoiAlignParams& p,
                 int64_t batch, std::vector<Tensor>& grads) {
  const int64_t channels = grad_output.size(1);
  const int64_t bins = p.bins_h * p.bins_w;
  const int64_t levels = static_cast<int64_t>(maps.size());
  const auto touched = touched_segments(plans, batch, p, maps);
  std::vector<std::vector<int64_t>> boxes_of(levels * batch);
  for (size_t k = 0; k < plans.size(); ++k) {
    if (plans[k].level >= 0) {
      boxes_of[plans[k].level * batch + plans[k].image].push_back(static_cast<int64_t>(k));
    }
  }
  const grad_t* const grad = static_cast<const grad_t*>(grad_output.const_data_ptr());
  std::vector<grad_t*> out;
  int64_t pixels = 0;
  for (int64_t level = 0; level < levels; ++level) {
    out.push_back(static_cast<grad_t*>(grads[level].mutable_data_ptr()));
    pixels = std::max(pixels, maps[level].pixels());
  }
  constexpr int64_t lanes = ChannelVector<T>::lanes;
  // Half a tile, for twice the tasks.
  constexpr int64_t block = kChannels<T> / 2;
  const int64_t blocks = (channels + block - 1) / block;
  // Levels innermost: they differ most in work, and threads take runs of tasks.
  parallel_items(blocks * batch * levels, kGrainElements, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> image(new T[pixels * block]);
    std::vector<T> tile(tile_rows(p) * p.bins_w * block);
    std::vector<T> rows(tile.size());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t level = item % levels;
      const int64_t n = item / levels % batch;
      const int64_t c = item / levels / batch * block;
      const int64_t count = std::min(block, channels - c);
      const int64_t stride = (count + lanes - 1) / lanes * lanes;
      const FeatureMap& map = maps[level];
      const uint8_t* const marks = touched[level].data() + n * map.segments();
      for (int64_t s = 0; s < map.segments(); ++s) {
        if (marks[s]) {
          const int64_t pixel = s * kPixels;
          std::fill_n(image.get() + pixel * stride, std::min(kPixels, map.pixels() - pixel) * stride, T(0));
        }
      }
      for (const int64_t k : boxes_of[level * batch + n]) {
        const grad_t* const from = grad + k * channels * bins + (grad_channels_last ? c : c * bins);
        for (int64_t row = 0; row < p.bins_h; row += tile_rows(p)) {
          const int64_t last = std::min(row + tile_rows(p), p.bins_h);
          load_tile(from, grad_channels_last, channels, bins, row * p.bins_w, (last - row) * p.bins_w, count, stride,
                    rows.data(), tile.data());
          scatter_bins(image.get(), map.width, stride, plans[k], p, row, last, static_cast<const T*>(tile.data()));
        }
      }
      const bool channels_last = sizes[level].channels_last;
      grad_t* const to = out[level] + n * channels * map.pixels() + (channels_last ? c : c * map.pixels());
      store_image(static_cast<const T*>(image.get()), stride, count, map, marks, channels_last, channels, to);
    }
  });
}

}  // namespace

std::vector<Tensor> pool_boxes_backward(const char* op, const Tensor& grad_output, const Tensor& boxes, int64_t batch,
                                        const std::vector<MapSize>& sizes, const std::vector<double>& scales,
                                        const RoiAlignParams& p, const PyramidParams& pyramid) {
  check_dim(grad_output, 4, op, "grad_output");
  check_dim(boxes, 2, op, "boxes");
  STD_TORCH_CHECK(boxes.size(1) == 5 && boxes.size(0) == grad_output.size(0), op,
                  ": expected boxes of shape [K, 5] and a grad_output of as many boxes, got ", shape_string(boxes),
                  " and ", shape_string(grad_output));
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad = to_dense(grad_output, channels_last);
  std::vector<FeatureMap> maps;
  std::vector<Tensor> grads;
  for (size_t i = 0; i < sizes.size(); ++i) {
    maps.push_back({sizes[i].height, sizes[i].width, scales[i]});
    grads.push_back(empty_nchw(batch, grad.size(1), sizes[i].height, sizes[i].width, grad.scalar_type(), grad,
                               sizes[i].channels_last));
  }
  dispatch_floating(grad.scalar_type(), op, [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<BoxPlan<T>> plans = plan_boxes<T>(op, boxes, batch, p, pyramid, maps);
    scatter_all<scalar_t>(grad, channels_last, maps, sizes, plans, p, batch, grads);
  });
  return grads;
}

namespace {

Tensor roi_align_backward_cpu(const Tensor& grad_output,  // [K, C, PH, PW]
                              const Tensor& boxes,        // [K, 5]
                              int64_t batch, int64_t height, int64_t width, double spatial_scale,
                              int64_t sampling_ratio, bool aligned, bool channels_last) {
  check_dim(grad_output, 4, "roi_align_backward", "grad_output");
  return pool_boxes_backward("roi_align_backward", grad_output, boxes, batch, {{height, width, channels_last}},
                             {spatial_scale}, {grad_output.size(2), grad_output.size(3), sampling_ratio, aligned},
                             {1, 0, 0, 0, 0})[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cpu));
}

}  // namespace segkernels
