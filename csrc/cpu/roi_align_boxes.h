// RoI Align over one or several feature maps on the CPU.
//
// Bilinear sampling on a grid is separable: a bin's mean is sum over rows of wy * sum over columns of wx * f(y, x). The
// samples of a bin are merged into one short list of (row, weight) and one of (column, weight), and all inner loops run
// over channels. Contiguous maps are therefore brought into channels_last first, only where a box touches them.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/loss_blocks.h"
#include "../common/parallel.h"
#include "../common/roi_align.h"

namespace segkernels {

using IntList = std::vector<int64_t>;

constexpr int64_t kPixels = 32;    // pixels packed together, and the unit of what a box touches
constexpr int64_t kMaxBins = 64;   // bins of a tile, unless one row of bins is longer
constexpr int64_t kVectors = 8;    // vectors of channels held in registers
constexpr int64_t kBoxWork = 512;  // elements of memory traffic that planning a box is worth

template <typename T>
struct ChannelVector {
  typedef T type __attribute__((vector_size(32)));
  static constexpr int64_t lanes = 32 / sizeof(T);
};

template <typename T>
constexpr int64_t kChannels = kVectors * ChannelVector<T>::lanes;  // channels of a tile

template <typename T>
struct Tap {
  int64_t index;
  T weight;
};

// What a box reads: taps of its rows of bins, then of its columns of bins; list i ends at ends[i].
template <typename T>
struct BoxPlan {
  int64_t image = 0;
  int64_t level = -1;  // -1: the box is empty
  std::vector<Tap<T>> taps;
  std::vector<int32_t> ends;

  const Tap<T>* begin(int64_t list) const {
    return taps.data() + (list == 0 ? 0 : ends[list - 1]);
  }
  const Tap<T>* end(int64_t list) const {
    return taps.data() + ends[list];
  }
};

// The plane of a feature map.
struct FeatureMap {
  int64_t height, width;
  double scale;

  int64_t pixels() const {
    return height * width;
  }
  int64_t segments() const {
    return (pixels() + kPixels - 1) / kPixels;
  }
};

template <typename T>
void add_tap(std::vector<Tap<T>>& taps, size_t first, int64_t index, T weight) {
  // Samples advance, so an equal index is among the last two.
  for (size_t i = taps.size(); i > first && i + 2 > taps.size(); --i) {
    if (taps[i - 1].index == index) {
      taps[i - 1].weight += weight;
      return;
    }
  }
  taps.push_back({index, weight});
}

template <typename T>
void add_axis(BoxPlan<T>& plan, const SampleAxis<T>& axis, int64_t bins, int64_t size, T factor) {
  for (int64_t b = 0; b < bins; ++b) {
    const size_t first = plan.taps.size();
    const SampleRange range = sample_range(axis, b, size);
    for (int64_t i = range.begin; i < range.end; ++i) {
      SampleTap<T> tap;
      if (sample_tap(axis.position(b, i), size, tap)) {
        add_tap(plan.taps, first, tap.low, tap.low_weight * factor);
        if (tap.high != tap.low) {
          add_tap(plan.taps, first, tap.high, tap.high_weight * factor);
        }
      }
    }
    plan.ends.push_back(static_cast<int32_t>(plan.taps.size()));
  }
}

template <typename T>
void plan_box(const T* box,  // [5]
              const RoiAlignParams& p, const PyramidParams& pyramid, const std::vector<FeatureMap>& maps,
              BoxPlan<T>& plan) {
  plan.level = box_level(box[1], box[2], box[3], box[4], pyramid);
  if (plan.level < 0) {
    return;
  }
  const FeatureMap& map = maps[plan.level];
  const T scale = static_cast<T>(map.scale);
  const SampleAxis<T> rows = sample_axis(box[2], box[4], scale, p.bins_h, p);
  const SampleAxis<T> columns = sample_axis(box[1], box[3], scale, p.bins_w, p);
  plan.ends.reserve(p.bins_h + p.bins_w);
  add_axis(plan, rows, p.bins_h, map.height, T(1) / sample_count<T>(rows.samples, columns.samples));
  const size_t row_taps = plan.taps.size();
  add_axis(plan, columns, p.bins_w, map.width, T(1));
  if (row_taps == 0 || plan.taps.size() == row_taps) {
    plan.level = -1;
  }
}

template <typename T>
std::vector<BoxPlan<T>> plan_boxes(const char* op, const Tensor& boxes,  // [K, 5]
                                   int64_t batch, const RoiAlignParams& p, const PyramidParams& pyramid,
                                   const std::vector<FeatureMap>& maps) {
  const Tensor dense = torch::stable::contiguous(boxes);
  const int64_t count = boxes.size(0);
  std::vector<T> values(count * 5);
  dispatch_floating(dense.scalar_type(), op, [&]<typename box_t>() {
    load_values(static_cast<const box_t*>(dense.const_data_ptr()), 1, count * 5, values.data());
  });
  std::vector<BoxPlan<T>> plans(count);
  for (int64_t k = 0; k < count; ++k) {
    plans[k].image = box_image(values[k * 5], batch);
    STD_TORCH_CHECK(plans[k].image >= 0, op, ": expected boxes to name an image from 0 to ", batch - 1, ", got ",
                    static_cast<double>(values[k * 5]), " in box ", k);
  }
  parallel_items(count, kBoxWork, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      plan_box(values.data() + k * 5, p, pyramid, maps, plans[k]);
    }
  });
  return plans;
}

// Marks the segments of each image of each map that a box reads: [levels][batch * segments].
template <typename T>
std::vector<std::vector<uint8_t>> touched_segments(const std::vector<BoxPlan<T>>& plans, int64_t batch,
                                                   const RoiAlignParams& p, const std::vector<FeatureMap>& maps) {
  std::vector<std::vector<uint8_t>> touched;
  for (const FeatureMap& map : maps) {
    touched.emplace_back(batch * map.segments(), uint8_t{0});
  }
  for (const BoxPlan<T>& plan : plans) {
    if (plan.level < 0) {
      continue;
    }
    const FeatureMap& map = maps[plan.level];
    uint8_t* marks = touched[plan.level].data() + plan.image * map.segments();
    const Tap<T>* const rows_end = plan.end(p.bins_h - 1);
    const Tap<T>* const columns_end = plan.end(p.bins_h + p.bins_w - 1);
    int64_t left = INT64_MAX, right = 0;
    for (const Tap<T>* column = rows_end; column != columns_end; ++column) {
      left = std::min(left, column->index);
      right = std::max(right, column->index);
    }
    for (const Tap<T>* row = plan.begin(0); row != rows_end; ++row) {
      const int64_t first = (row->index * map.width + left) / kPixels;
      const int64_t last = (row->index * map.width + right) / kPixels;
      std::fill(marks + first, marks + last + 1, uint8_t{1});
    }
  }
  return touched;
}

// Rows of bins that fit a tile.
inline int64_t tile_rows(const RoiAlignParams& p) {
  return std::max<int64_t>(1, std::min(p.bins_h, kMaxBins / p.bins_w));
}

// roi_align and its gradient over the maps of a pyramid; one map is a pyramid of one level.
Tensor pool_boxes(const char* op, const std::vector<Tensor>& features, const Tensor& boxes,
                  const std::vector<double>& scales, const RoiAlignParams& p, const PyramidParams& pyramid);

struct MapSize {
  int64_t height, width;
  bool channels_last;
};

std::vector<Tensor> pool_boxes_backward(const char* op, const Tensor& grad_output, const Tensor& boxes, int64_t batch,
                                        const std::vector<MapSize>& sizes, const std::vector<double>& scales,
                                        const RoiAlignParams& p, const PyramidParams& pyramid);

}  // namespace segkernels
