// Losses on softmax probabilities on the CPU. Forward reads the logits once and keeps sums; backward reads them once
// more, recomputes the probabilities and writes the gradient. Logits smaller than the labels are upsampled in cache.
//
// An ignored pixel has the logits 0 and a sum of exponentials whose inverse counts as 0, so that no kernel knows masks.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "softmax_planes.h"
#include "softmax_upsampled.h"

namespace segkernels {
namespace {

Planes planes_of(const Tensor& tensor, int64_t channels, int64_t pixels, bool channels_last) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), channels, pixels, channels_last};
}

// Where forward leaves its results.
template <typename T>
struct Statistics {
  double* region;  // [N, C, 3] or null
  double* pixel;   // [N, 3]
  T* losses;       // [N, H, W] or null

  // Items are [N, per_sample], added up in their order.
  void add(const SoftmaxParams& p, const std::vector<SoftmaxSums>& items, int64_t per_sample) const {
    for (int64_t n = 0; n < p.batch; ++n) {
      std::fill(pixel + n * kPixelSums, pixel + (n + 1) * kPixelSums, 0.0);
      double* const classes = region + n * p.classes * kRegionSums;
      if (p.regions) {
        std::fill(classes, classes + p.classes * kRegionSums, 0.0);
      }
      for (int64_t item = n * per_sample; item < (n + 1) * per_sample; ++item) {
        for (int64_t k = 0; k < kPixelSums; ++k) {
          pixel[n * kPixelSums + k] += items[item].pixel[k];
        }
        for (size_t k = 0; k < items[item].region.size(); ++k) {
          classes[k] += items[item].region[k];
        }
      }
    }
  }
  void store_losses(const PixelBlock<T>& block, int64_t begin) const {
    if (losses) {
      std::copy(block.loss, block.loss + block.count, losses + begin);
    }
  }
};

// Adds a block of softmax values, whose first pixel is `pixel` of all.
template <typename T>
void add_block(const SoftmaxParams& p, PlaneBlock<T>& block, const Statistics<T>& result, int64_t pixel,
               std::atomic<bool>& outside, SoftmaxSums& sums) {
  if (block.pixels.outside) {
    outside.store(true, std::memory_order_relaxed);
  }
  pixel_losses(p, block.pixels);
  add_pixel_sums(p, block.pixels, sums);
  if (p.regions) {
    sum_probabilities(block.tile.data(), block.step, block.pixels.inverse, p.classes, padded(block.pixels.count),
                      sums.region.data());
  }
  result.store_losses(block.pixels, pixel);
}

template <typename T>
bool collect_planes(const SoftmaxParams& p, const Planes& inputs, const Labels& labels, const Statistics<T>& result) {
  const int64_t chunks = (p.pixels() + kSoftmaxChunk - 1) / kSoftmaxChunk;
  const ClassValues<T> values = class_values<T>(p, nullptr);
  std::vector<SoftmaxSums> items(p.batch * chunks);
  std::atomic<bool> outside{false};
  parallel_items(p.batch * chunks, std::min(p.pixels(), kSoftmaxChunk) * p.classes, [&](int64_t first, int64_t last) {
    PlaneBlock<T> block(p.classes);
    for (int64_t item = first; item < last; ++item) {
      const int64_t n = item / chunks;
      const int64_t begin = item % chunks * kSoftmaxChunk;
      const int64_t end = std::min(begin + kSoftmaxChunk, p.pixels());
      SoftmaxSums sums;
      sums.region.resize(p.regions ? p.classes * kRegionSums : 0);
      for (int64_t i = begin; i < end; i += kPixels) {
        block.softmax(p, inputs, labels, values, n, i, std::min(kPixels, end - i), p.label_smoothing != 0);
        add_block(p, block, result, n * p.pixels() + i, outside, sums);
      }
      items[item] = std::move(sums);
    }
  });
  result.add(p, items, chunks);
  return outside.load();
}

template <typename T>
bool collect_upsampled(const SoftmaxParams& p, const Planes& inputs, const Labels& labels,
                       const Statistics<T>& result) {
  const ClassValues<T> values = class_values<T>(p, nullptr);
  const int64_t rows = band_rows(p);
  const int64_t bands = (p.in_h + rows - 1) / rows;
  std::vector<SoftmaxSums> items(p.batch * bands);
  std::atomic<bool> outside{false};
  parallel_items(p.batch * bands, p.pixels() * p.classes / bands, [&](int64_t first, int64_t last) {
    BandWalk<T> walk(p, inputs, labels);
    for (int64_t item = first; item < last; ++item) {
      SoftmaxSums sums;
      sums.region.resize(p.regions ? p.classes * kRegionSums : 0);
      const int64_t begin = item % bands * rows;
      walk.rows(
          item / bands, begin, std::min(begin + rows, p.in_h), values, p.label_smoothing != 0,
          [&](PlaneBlock<T>& block, int64_t pixel, int64_t, const BilinearTap<T>&) {
            add_block(p, block, result, pixel, outside, sums);
          },
          [](int64_t, int64_t) {});
      items[item] = std::move(sums);
    }
  });
  result.add(p, items, bands);
  return outside.load();
}

// What reaches the losses: gradients of the statistics.
template <typename T>
struct Upstream {
  const double* region;  // [N, C, 3]
  const double* pixel;   // [N, 3]
  const T* losses;       // [N, H, W]

  std::vector<ClassValues<T>> values(const SoftmaxParams& p) const {
    std::vector<ClassValues<T>> samples;
    for (int64_t n = 0; n < p.batch; ++n) {
      samples.push_back(class_values<T>(p, p.regions ? region + n * p.classes * kRegionSums : nullptr));
    }
    return samples;
  }
};

template <typename T>
void write_planes(const SoftmaxParams& p, const Planes& inputs, const Labels& labels, const Upstream<T>& upstream,
                  const Planes& outputs) {
  const int64_t chunks = (p.pixels() + kSoftmaxChunk - 1) / kSoftmaxChunk;
  const std::vector<ClassValues<T>> samples = upstream.values(p);
  constexpr ScalarType own = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  parallel_items(p.batch * chunks, std::min(p.pixels(), kSoftmaxChunk) * p.classes, [&](int64_t first, int64_t last) {
    PlaneBlock<T> block(p.classes);
    PixelBlock<T>& pixels = block.pixels;
    for (int64_t item = first; item < last; ++item) {
      const int64_t n = item / chunks;
      const int64_t begin = item % chunks * kSoftmaxChunk;
      const int64_t end = std::min(begin + kSoftmaxChunk, p.pixels());
      const ClassValues<T>& values = samples[n];
      for (int64_t i = begin; i < end; i += kPixels) {
        const int64_t count = std::min(kPixels, end - i);
        block.softmax(p, inputs, labels, values, n, i, count, false);
        load_upstream(p, upstream.pixel[n * kPixelSums], upstream.losses, n * p.pixels() + i, pixels);
        pixel_slopes(p, values, pixels);
        // Straight into the tensor where its memory can take whole vectors.
        const bool direct = outputs.dtype == own && !outputs.channels_last && count % kBlockLanes == 0;
        T* const output =
            direct ? static_cast<T*>(const_cast<void*>(outputs.data)) + outputs.start(n, 0) + i : block.tile.data();
        const int64_t step = direct ? outputs.pixels : kPixels;
        plane_gradients(block.tile.data(), pixels, values, p.classes, padded(count), p.label_smoothing != 0, step,
                        output);
        if (!direct) {
          for (int64_t c = 0; c < p.classes; ++c) {
            store_block(output + c * kPixels, outputs, n, c, i, count);
          }
        }
      }
    }
  });
}

// Source row y of the gradient, from [w + 1, padded C]: what lies behind the last column belongs to it.
template <typename T>
void store_gradient_row(const SoftmaxParams& p, const T* row, int64_t n, int64_t y, const Planes& outputs) {
  const int64_t width = padded(p.classes);
  std::vector<T> plane(p.in_w);
  for (int64_t c = 0; c < p.classes; ++c) {
    for (int64_t x = 0; x < p.in_w; ++x) {
      plane[x] = row[x * width + c];
    }
    plane[p.in_w - 1] += row[p.in_w * width + c];
    store_block(plane.data(), outputs, n, c, y * p.in_w, p.in_w);
  }
}

// A band owns its source rows. Its last output rows also read the next band's first row: that share is set aside and
// added by the order of the bands.
template <typename T>
void write_upsampled(const SoftmaxParams& p, const Planes& inputs, const Labels& labels, const Upstream<T>& upstream,
                     const Planes& outputs) {
  const std::vector<ClassValues<T>> samples = upstream.values(p);
  const int64_t rows = band_rows(p);
  const int64_t bands = (p.in_h + rows - 1) / rows;
  const int64_t size = (p.in_w + kBlockLanes + 1) * padded(p.classes);
  std::vector<std::vector<T>> first_rows(p.batch * bands), beyond(p.batch * bands);
  parallel_items(p.batch * bands, p.pixels() * p.classes / bands, [&](int64_t first, int64_t last) {
    BandWalk<T> walk(p, inputs, labels);
    const int64_t step = walk.columns().block;
    std::vector<T> gradient((rows + 1) * size), low(padded(p.classes) * step), high(low);
    for (int64_t item = first; item < last; ++item) {
      const int64_t n = item / bands;
      const int64_t begin = item % bands * rows;
      const int64_t end = std::min(begin + rows, p.in_h);
      const ClassValues<T>& values = samples[n];
      const T* slope = values.probability.empty() ? nullptr : values.probability.data();
      const T* weights = p.label_smoothing != 0 ? values.smoothing.data() : nullptr;
      std::fill(gradient.begin(), gradient.end(), T(0));
      walk.rows(
          n, begin, end, values, false,
          [&](PlaneBlock<T>& block, int64_t pixel, int64_t source, const BilinearTap<T>& tap) {
            load_upstream(p, upstream.pixel[n * kPixelSums], upstream.losses, pixel, block.pixels);
            pixel_slopes(p, values, block.pixels);
            T* const next = source + 1 < p.in_h ? high.data() : low.data();
            spread_gradients(block.tile.data(), block.pixels, slope, weights, tap, p.classes, step, low.data(), next);
          },
          [&](int64_t b, int64_t source) {
            if (source > begin) {
              shrink(low.data(), p.classes, walk.columns(), b, gradient.data() + (source - 1 - begin) * size);
              std::swap(low, high);
            } else {
              std::fill(low.begin(), low.end(), T(0));
            }
            if (source == end) {
              shrink(low.data(), p.classes, walk.columns(), b, gradient.data() + (end - begin) * size);
            }
            std::fill(high.begin(), high.end(), T(0));
          });
      for (int64_t source = begin + 1; source < end; ++source) {
        store_gradient_row(p, gradient.data() + (source - begin) * size, n, source, outputs);
      }
      first_rows[item].assign(gradient.begin(), gradient.begin() + size);
      beyond[item].assign(gradient.begin() + (end - begin) * size, gradient.begin() + (end - begin + 1) * size);
    }
  });
  parallel_items(p.batch * bands, size, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      std::vector<T>& row = first_rows[item];
      for (int64_t i = 0; item % bands != 0 && i < size; ++i) {
        row[i] += beyond[item - 1][i];
      }
      store_gradient_row(p, row.data(), item / bands, item % bands * rows, outputs);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> softmax_statistics_cpu(const Tensor& input,   // [N, C, h, w]
                                                          const Tensor& target,  // [N, H, W]
                                                          std::optional<Tensor> class_weights,
                                                          std::optional<int64_t> ignore_index, double label_smoothing,
                                                          double gamma, bool regions, bool losses, bool align_corners) {
  const SoftmaxParams p =
      softmax_params(input, target, class_weights, label_smoothing, gamma, regions, losses, align_corners);
  const bool channels_last = is_channels_last(input);
  const Tensor logits = to_dense(input, channels_last);
  const Planes inputs = planes_of(logits, p.classes, p.in_h * p.in_w, channels_last);
  const Labels labels(target, kSoftmaxStatistics, p.classes, ignore_index);
  const ScalarType compute = compute_type(input.scalar_type());
  Tensor region = empty({p.batch, regions ? p.classes : 0, kRegionSums}, ScalarType::Double, input);
  Tensor pixel = empty({p.batch, kPixelSums}, ScalarType::Double, input);
  Tensor map = empty({p.batch, losses ? p.out_h : 0, losses ? p.out_w : 0}, compute, input);  // [N, H, W]
  bool outside = false;
  dispatch_floating(input.scalar_type(), kSoftmaxStatistics, []<typename>() {});
  dispatch_compute(compute, [&]<typename T>() {
    const Statistics<T> result{static_cast<double*>(region.mutable_data_ptr()),
                               static_cast<double*>(pixel.mutable_data_ptr()),
                               losses ? static_cast<T*>(map.mutable_data_ptr()) : nullptr};
    outside =
        p.upsampled() ? collect_upsampled<T>(p, inputs, labels, result) : collect_planes<T>(p, inputs, labels, result);
  });
  STD_TORCH_CHECK(!outside, kSoftmaxStatistics, ": expected labels in [0, ", p.classes, ") in target",
                  ignore_index ? " (or ignore_index)" : "", ", found another");
  return {region, pixel, map};
}

Tensor softmax_statistics_backward_cpu(const Tensor& grad_region,  // [N, C, 3]
                                       const Tensor& grad_pixel,   // [N, 3]
                                       const Tensor& grad_losses,  // [N, H, W]
                                       const Tensor& input,        // [N, C, h, w]
                                       const Tensor& target,       // [N, H, W]
                                       std::optional<Tensor> class_weights, std::optional<int64_t> ignore_index,
                                       double label_smoothing, double gamma, bool regions, bool losses,
                                       bool align_corners) {
  const SoftmaxParams p =
      softmax_params(input, target, class_weights, label_smoothing, gamma, regions, losses, align_corners);
  const char* op = "softmax_statistics_backward";
  const ScalarType compute = compute_type(input.scalar_type());
  dispatch_floating(input.scalar_type(), op, []<typename>() {});
  check_softmax_gradients(grad_region, grad_pixel, grad_losses, input, target, regions, losses);
  const bool channels_last = is_channels_last(input);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor region = torch::stable::contiguous(grad_region);
  const Tensor pixel = torch::stable::contiguous(grad_pixel);
  const Tensor map = torch::stable::contiguous(grad_losses);
  const Labels labels(target, op, p.classes, ignore_index);
  Tensor grad_input =
      empty_nchw(p.batch, p.classes, p.in_h, p.in_w, input.scalar_type(), input, channels_last);  // [N, C, h, w]
  const Planes inputs = planes_of(logits, p.classes, p.in_h * p.in_w, channels_last);
  const Planes outputs = planes_of(grad_input, p.classes, p.in_h * p.in_w, channels_last);
  dispatch_compute(compute, [&]<typename T>() {
    const Upstream<T> upstream{static_cast<const double*>(region.const_data_ptr()),
                               static_cast<const double*>(pixel.const_data_ptr()),
                               static_cast<const T*>(map.const_data_ptr())};
    if (p.upsampled()) {
      write_upsampled<T>(p, inputs, labels, upstream, outputs);
    } else {
      write_planes<T>(p, inputs, labels, upstream, outputs);
    }
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("softmax_statistics", TORCH_BOX(&softmax_statistics_cpu));
  m.impl("softmax_statistics_backward", TORCH_BOX(&softmax_statistics_backward_cpu));
}

}  // namespace segkernels
