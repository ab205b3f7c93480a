// Sums over sigmoid probabilities on the CPU: what the region losses and the pixel losses of binary and multilabel
// logits need, from logits of the target's size or upsampled bilinearly as they are read.
//
// An ignored pixel is given a logit of -1e30 and the target 0 on its way into L1: its probability, its loss and its
// gradient are then exactly 0, so that the kernels know nothing of masks.
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "../common/bilinear.h"
#include "../common/binary_pixels.h"
#include "../common/check.h"
#include "../common/loss_blocks.h"
#include "../common/sigmoid_check.h"

namespace segkernels {
namespace {

constexpr const char* kOp = kSigmoidStatistics;
constexpr int64_t kSums = 5;  // p * t or min(p, t), p, t; the pixel loss; valid pixels

struct SigmoidParams {
  int64_t batch, channels, height, width;  // of the target
  int64_t in_height, in_width;
  std::optional<int64_t> ignore_index;
  std::vector<double> positive;
  double negative, gamma;
  bool min_intersection, align_corners;

  int64_t pixels() const {
    return height * width;
  }
  bool upsamples() const {
    return in_height != height || in_width != width;
  }
};

// Weights of one channel's pixel loss: of the terms t and 1 - t, and the focusing exponent.
template <typename T>
struct PixelWeights {
  T positive, negative, gamma;
  bool min_intersection;
};

// Derivatives by p * t (or min), p and the pixel loss.
template <typename T>
struct PlaneGrad {
  T intersection, probability, loss;
};

// gamma is 2, or kAny.
template <bool kAny, typename V, typename T>
SEGKERNELS_INLINE V power(V m, T gamma) {
  if constexpr (kAny) {
    return exp_nonpositive(log_finite(m) * gamma);
  } else {
    return m * m;
  }
}

template <typename V>
struct Pixel {
  V p, q, error, cross_entropy;  // error: p(1 - t) + (1 - p)t
};

template <typename V, typename T>
SEGKERNELS_INLINE Pixel<V> pixel_of(V x, V e, V t, const PixelWeights<T>& w) {
  const V r = 1 / (1 + e);
  const V er = e * r;
  Pixel<V> pixel;
  pixel.p = x < V{} ? er : r;
  pixel.q = x < V{} ? r : er;
  const V rest = 1 - t;
  pixel.error = pixel.p * rest + pixel.q * t;
  const V positive = t * w.positive;
  const V negative = rest * w.negative;
  pixel.cross_entropy = log1p_unit(e) * (positive + negative) + (x > V{} ? negative * x : -positive * x);
  return pixel;
}

template <typename T>
SEGKERNELS_INLINE void prepare(const T* x, int64_t count, T* prepared) {
  using V = typename Lanes<T>::vector;
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    store_vector(prepared + i, FromLogits::prepare(load_vector<V>(x + i)));
  }
}

// Adds one block's sums; writes its losses too when `losses` is given.
template <bool kAny, typename T>
SEGKERNELS_CLONES void block_sums(const T* x, const T* target, int64_t count, PixelWeights<T> w, T* losses,
                                  double* sums) {
  using V = typename Lanes<T>::vector;
  alignas(32) T prepared[kBlock];
  prepare(x, count, prepared);
  V intersection{}, probability{}, positive{}, loss{};
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    const V t = load_vector<V>(target + i);
    const Pixel<V> pixel = pixel_of(load_vector<V>(x + i), load_vector<V>(prepared + i), t, w);
    const V product = pixel.p * t;
    const V least = pixel.p < t ? pixel.p : t;
    intersection += w.min_intersection ? least : product;
    probability += pixel.p;
    positive += t;
    const V value = w.gamma == 0 ? pixel.cross_entropy : power<kAny>(pixel.error, w.gamma) * pixel.cross_entropy;
    loss += value;
    if (losses) {
      store_vector(losses + i, value);
    }
  }
  sums[0] += sum_lanes(intersection);
  sums[1] += sum_lanes(probability);
  sums[2] += sum_lanes(positive);
  sums[3] += sum_lanes(loss);
}

// `scale`, when given, is added to grad.loss pixel by pixel.
template <bool kAny, typename T>
SEGKERNELS_CLONES void block_gradient(const T* x, const T* target, const T* scale, int64_t count, PixelWeights<T> w,
                                      PlaneGrad<T> grad, T* output) {
  using V = typename Lanes<T>::vector;
  alignas(32) T prepared[kBlock];
  prepare(x, count, prepared);
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    const V t = load_vector<V>(target + i);
    const Pixel<V> pixel = pixel_of(load_vector<V>(x + i), load_vector<V>(prepared + i), t, w);
    const V dp = pixel.p * pixel.q;
    V slope = (1 - t) * pixel.p * w.negative - t * pixel.q * w.positive;
    if (w.gamma != 0) {
      // d error / dx over the error; both vanish together.
      const V tiny = V{} + std::numeric_limits<T>::min();
      const V change = (1 - t - t) * dp / (pixel.error < tiny ? tiny : pixel.error);
      slope = power<kAny>(pixel.error, w.gamma) * (slope + change * pixel.cross_entropy * w.gamma);
    }
    const V half = pixel.p < t ? V{} + 1 : (pixel.p > t ? V{} : V{} + T(0.5));
    const V inside = w.min_intersection ? half : t;
    const V by_loss = scale ? load_vector<V>(scale + i) + grad.loss : V{} + grad.loss;
    store_vector(output + i, slope * by_loss + dp * (inside * grad.intersection + grad.probability));
  }
}

inline bool any_power(const SigmoidParams& p) {
  return p.gamma != 0 && p.gamma != 2;
}

template <typename T>
struct Taps {
  std::vector<BilinearTap<T>> rows, columns;

  explicit Taps(const SigmoidParams& p) {
    for (int64_t y = 0; y < p.height; ++y) {
      rows.push_back(bilinear_axis<T>(p.in_height, p.height, p.align_corners).tap(y));
    }
    for (int64_t x = 0; x < p.width; ++x) {
      columns.push_back(bilinear_axis<T>(p.in_width, p.width, p.align_corners).tap(x));
    }
  }
};

template <typename T>
void upsample_block(const SigmoidParams& p, const Taps<T>& taps, const T* plane, int64_t begin, int64_t count, T* to) {
  int64_t column = begin % p.width;
  int64_t row = begin / p.width;
  for (int64_t i = 0; i < count; ++row, column = 0) {
    const BilinearTap<T>& y = taps.rows[row];
    const T* low = plane + y.low * p.in_width;
    const T* high = plane + y.high * p.in_width;
    for (; i < count && column < p.width; ++i, ++column) {
      const BilinearTap<T>& x = taps.columns[column];
      to[i] = y.low_weight * (x.low_weight * low[x.low] + x.high_weight * low[x.high]) +
              y.high_weight * (x.low_weight * high[x.low] + x.high_weight * high[x.high]);
    }
  }
}

// Adds a block's gradient to the rows of the small plane; `rows` holds them from row `first` on.
template <typename T>
void gather_block(const SigmoidParams& p, const Taps<T>& taps, const T* grad, int64_t begin, int64_t count,
                  int64_t first, T* rows) {
  int64_t column = begin % p.width;
  int64_t row = begin / p.width;
  for (int64_t i = 0; i < count; ++row, column = 0) {
    const BilinearTap<T>& y = taps.rows[row];
    T* low = rows + (y.low - first) * p.in_width;
    T* high = rows + (y.high - first) * p.in_width;
    for (; i < count && column < p.width; ++i, ++column) {
      const BilinearTap<T>& x = taps.columns[column];
      const T left = grad[i] * x.low_weight;
      const T right = grad[i] * x.high_weight;
      low[x.low] += y.low_weight * left;
      low[x.high] += y.low_weight * right;
      high[x.low] += y.high_weight * left;
      high[x.high] += y.high_weight * right;
    }
  }
}

// Both inputs, block by block.
template <typename T>
struct Source {
  const SigmoidParams& p;
  Planes inputs, targets;
  Taps<T> taps;
  std::vector<T> small;  // the input as T, where it is upsampled

  Source(const SigmoidParams& params, const Planes& from, const Planes& labels)
      : p(params), inputs(from), targets(labels), taps(params) {
    if (!p.upsamples()) {
      return;
    }
    small.resize(p.batch * p.channels * inputs.pixels);
    for (int64_t plane = 0; plane < p.batch * p.channels; ++plane) {
      for (int64_t i = 0; i < inputs.pixels; i += kBlock) {
        alignas(32) T buffer[kBlock];
        const int64_t count = std::min(kBlock, inputs.pixels - i);
        load_block(inputs, plane / p.channels, plane % p.channels, i, count, T{0}, true, buffer);
        std::copy_n(buffer, count, small.data() + plane * inputs.pixels + i);
      }
    }
  }

  const T* load(int64_t n, int64_t c, int64_t begin, int64_t count, TargetBlock<T>& target, T* buffer) const {
    constexpr T neutral = static_cast<T>(FromLogits::kNeutral);
    load_target_block(targets, n, c, begin, count, p.ignore_index, target);
    const T* x = buffer;
    if (p.upsamples()) {
      upsample_block(p, taps, small.data() + (n * p.channels + c) * inputs.pixels, begin, count, buffer);
      std::fill(buffer + count, buffer + padded(count), neutral);
    } else {
      x = load_block(inputs, n, c, begin, count, neutral, p.ignore_index.has_value(), buffer);
    }
    if (target.masked) {
      replace_ignored(target.valid, count, neutral, buffer);
    }
    return x;
  }

  PixelWeights<T> weights(int64_t c) const {
    return {static_cast<T>(p.positive[c]), static_cast<T>(p.negative), static_cast<T>(p.gamma), p.min_intersection};
  }
};

// False with a label other than 0 and 1. region: [N, C, 3], pixel: [N, C, 2].
template <typename T>
bool collect(const Source<T>& source, const Planes* losses, double* region, double* pixel) {
  const SigmoidParams& p = source.p;
  const int64_t chunks = (p.pixels() + kChunk - 1) / kChunk;
  std::vector<std::array<double, kSums>> partial(p.batch * p.channels * chunks);
  std::atomic<bool> wrong{false};
  for_each_chunk(p.batch, p.channels, p.pixels(), [&](int64_t item, int64_t n, int64_t c, int64_t begin, int64_t end) {
    alignas(32) T buffer[kBlock];
    alignas(32) T values[kBlock];
    TargetBlock<T> target;
    std::array<double, kSums> sums{};
    bool bad = false;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      const T* x = source.load(n, c, i, count, target, buffer);
      bad |= target.wrong_label;
      (any_power(p) ? block_sums<true, T> : block_sums<false, T>)(x, target.value, padded(count), source.weights(c),
                                                                  losses ? values : nullptr, sums.data());
      sums[4] += static_cast<double>(target.valid_count);
      if (losses) {
        store_block(values, *losses, n, c, i, count);
      }
    }
    partial[item] = sums;
    if (bad) {
      wrong.store(true, std::memory_order_relaxed);
    }
  });
  std::fill(region, region + p.batch * p.channels * 3, 0.0);
  std::fill(pixel, pixel + p.batch * p.channels * 2, 0.0);
  for (size_t item = 0; item < partial.size(); ++item) {
    const int64_t n = static_cast<int64_t>(item) / (p.channels * chunks);
    const int64_t plane = n * p.channels + static_cast<int64_t>(item) % p.channels;
    for (int64_t k = 0; k < kSums; ++k) {
      (k < 3 ? region[plane * 3 + k] : pixel[plane * 2 + k - 3]) += partial[item][k];
    }
  }
  return !wrong.load();
}

// The gradient of every block of the target's size, to `write(item, n, c, begin, count, values)`.
template <typename T, typename F>
void for_each_gradient(const Source<T>& source, const Planes* scales, const std::vector<PlaneGrad<T>>& grads,
                       const F& write) {
  const SigmoidParams& p = source.p;
  for_each_chunk(p.batch, p.channels, p.pixels(), [&](int64_t item, int64_t n, int64_t c, int64_t begin, int64_t end) {
    alignas(32) T buffer[kBlock];
    alignas(32) T scale_buffer[kBlock];
    alignas(32) T output[kBlock];
    TargetBlock<T> target;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      const T* x = source.load(n, c, i, count, target, buffer);
      const T* scale = scales ? load_block(*scales, n, c, i, count, T{0}, false, scale_buffer) : nullptr;
      (any_power(p) ? block_gradient<true, T> : block_gradient<false, T>)(x, target.value, scale, padded(count),
                                                                          source.weights(c), grads[n * p.channels + c],
                                                                          output);
      if (target.masked) {
        replace_ignored(target.valid, count, T{0}, output);
      }
      write(item, n, c, i, count, output);
    }
  });
}

template <typename T>
void write_gradient(const Source<T>& source, const Planes* scales, const std::vector<PlaneGrad<T>>& grads,
                    const Planes& outputs) {
  const SigmoidParams& p = source.p;
  if (!p.upsamples()) {
    for_each_gradient<T>(source, scales, grads,
                         [&](int64_t, int64_t n, int64_t c, int64_t begin, int64_t count, const T* values) {
                           store_block(values, outputs, n, c, begin, count);
                         });
    return;
  }
  // Every chunk sums into rows of its own, which are then added up in the order of chunks.
  const int64_t chunks = (p.pixels() + kChunk - 1) / kChunk;
  std::vector<int64_t> first(chunks), start(chunks + 1);
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t last_pixel = std::min((k + 1) * kChunk, p.pixels()) - 1;
    first[k] = source.taps.rows[k * kChunk / p.width].low;
    const int64_t rows = source.taps.rows[last_pixel / p.width].high - first[k] + 1;
    start[k + 1] = start[k] + rows * p.in_width;
  }
  std::vector<T> sums(p.batch * p.channels * start[chunks]);
  const auto rows_of = [&](int64_t plane, int64_t chunk) { return sums.data() + plane * start[chunks] + start[chunk]; };
  for_each_gradient<T>(
      source, scales, grads, [&](int64_t, int64_t n, int64_t c, int64_t begin, int64_t count, const T* values) {
        const int64_t chunk = begin / kChunk;
        gather_block(p, source.taps, values, begin, count, first[chunk], rows_of(n * p.channels + c, chunk));
      });
  std::vector<T> total(p.batch * p.channels * outputs.pixels);
  parallel_items(p.batch * p.channels, start[chunks], [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      T* to = total.data() + plane * outputs.pixels;
      for (int64_t k = 0; k < chunks; ++k) {
        const T* from = rows_of(plane, k);
        for (int64_t i = 0; i < start[k + 1] - start[k]; ++i) {
          to[first[k] * p.in_width + i] += from[i];
        }
      }
      store_block(to, outputs, plane / p.channels, plane % p.channels, 0, outputs.pixels);
    }
  });
}

SigmoidParams make_params(const Tensor& input, const Tensor& target, const std::optional<Tensor>& positive,
                          double negative, double gamma, std::optional<int64_t> ignore_index, bool min_intersection,
                          bool align_corners) {
  check_sigmoid(input, target, gamma);
  return {target.size(0), target.size(1), target.size(2),   target.size(3),
          input.size(2),  input.size(3),  ignore_index,     channel_weights(positive, input.size(1), kOp, "positive"),
          negative,       gamma,          min_intersection, align_corners};
}

Planes planes_of(const Tensor& tensor, bool channels_last) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), tensor.size(1), tensor.size(2) * tensor.size(3),
          channels_last};
}

std::tuple<Tensor, Tensor, Tensor> sigmoid_statistics_cpu(const Tensor& input,   // [N, C, h, w]
                                                          const Tensor& target,  // [N, C, H, W]
                                                          std::optional<Tensor> positive, double negative, double gamma,
                                                          std::optional<int64_t> ignore_index, bool min_intersection,
                                                          bool losses, bool align_corners) {
  const SigmoidParams p =
      make_params(input, target, positive, negative, gamma, ignore_index, min_intersection, align_corners);
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  Tensor region = empty({p.batch, p.channels, 3}, ScalarType::Double, input);
  Tensor pixel = empty({p.batch, p.channels, 2}, ScalarType::Double, input);
  const ScalarType dtype = compute_type(input.scalar_type());
  Tensor map = empty_nchw(p.batch, p.channels, losses ? p.height : 0, losses ? p.width : 0, dtype, input, false);
  const Planes map_planes = planes_of(map, false);
  bool right = true;
  dispatch_compute(dtype, [&]<typename T>() {
    const Source<T> source(p, planes_of(logits, channels_last), planes_of(labels, target_last));
    right = collect<T>(source, losses ? &map_planes : nullptr, static_cast<double*>(region.mutable_data_ptr()),
                       static_cast<double*>(pixel.mutable_data_ptr()));
  });
  STD_TORCH_CHECK(right, kOp, ": expected labels 0 and 1 in target", ignore_index ? " (or ignore_index)" : "",
                  ", found another");
  return {region, pixel, map};
}

Tensor sigmoid_statistics_backward_cpu(const Tensor& grad_region,  // [N, C, 3]
                                       const Tensor& grad_pixel,   // [N, C, 2]
                                       const Tensor& grad_losses,  // [N, C, H, W], used with `losses`
                                       const Tensor& input,        // [N, C, h, w]
                                       const Tensor& target,       // [N, C, H, W]
                                       std::optional<Tensor> positive, double negative, double gamma,
                                       std::optional<int64_t> ignore_index, bool min_intersection, bool losses,
                                       bool align_corners) {
  const SigmoidParams p =
      make_params(input, target, positive, negative, gamma, ignore_index, min_intersection, align_corners);
  check_sigmoid_gradients(grad_region, grad_pixel, grad_losses, target, losses);
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const Tensor by_region = to_dense(grad_region, false);
  const Tensor by_pixel = to_dense(grad_pixel, false);
  const Tensor map = to_dense(grad_losses, false);
  const Planes scales = planes_of(map, false);
  Tensor grad_input = empty_nchw(p.batch, p.channels, p.in_height, p.in_width, input.scalar_type(), input,
                                 channels_last);  // [N, C, h, w]
  const double* regions = static_cast<const double*>(by_region.const_data_ptr());
  const double* pixels = static_cast<const double*>(by_pixel.const_data_ptr());
  dispatch_compute(input.scalar_type(), [&]<typename T>() {
    std::vector<PlaneGrad<T>> grads(p.batch * p.channels);
    for (size_t i = 0; i < grads.size(); ++i) {
      grads[i] = {static_cast<T>(regions[i * 3]), static_cast<T>(regions[i * 3 + 1]), static_cast<T>(pixels[i * 2])};
    }
    const Source<T> source(p, planes_of(logits, channels_last), planes_of(labels, target_last));
    write_gradient<T>(source, losses ? &scales : nullptr, grads, planes_of(grad_input, channels_last));
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("sigmoid_statistics", TORCH_BOX(&sigmoid_statistics_cpu));
  m.impl("sigmoid_statistics_backward", TORCH_BOX(&sigmoid_statistics_backward_cpu));
}

}  // namespace segkernels
