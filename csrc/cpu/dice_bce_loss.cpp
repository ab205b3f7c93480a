// Dice + binary cross entropy on the CPU. Forward reads logits and target once and keeps five sums a plane; backward
// reads them once more, recomputes the probabilities and writes the gradient.
//
// An ignored pixel is given a logit of -1e30 and the target 0 on its way into L1: its probability, its loss and its
// gradient are then exactly 0, so that the kernels know nothing of masks.
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "../common/dice_bce_loss.h"

#include "../common/binary_pixels.h"
#include "../common/check.h"
#include "../common/loss_blocks.h"

namespace segkernels {
namespace {

template <typename Activation, typename T>
SEGKERNELS_INLINE void prepare_block(const T* input, int64_t count, T* prepared) {
  using V = typename Lanes<T>::vector;
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    store_vector(prepared + i, Activation::prepare(load_vector<V>(input + i)));
  }
}

// Adds the sums of one block (a padded number of pixels) to `sums`; lanes are float, blocks are added up in double.
template <typename Activation, bool kSoftTarget, typename T>
SEGKERNELS_CLONES void block_sums(const T* input, const T* target, int64_t count, T pos_weight, double* sums) {
  using V = typename Lanes<T>::vector;
  alignas(32) T prepared[kBlock];
  prepare_block<Activation>(input, count, prepared);
  V intersection{}, probability{}, positive{}, loss{};
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    const V t = load_vector<V>(target + i);
    V p, bce;
    Activation::loss(load_vector<V>(input + i), load_vector<V>(prepared + i), t, t * pos_weight, p, bce);
    if constexpr (kSoftTarget) {
      intersection += p < t ? p : t;
    } else {
      intersection += p * t;
    }
    probability += p;
    positive += t;
    loss += bce;
  }
  sums[0] += sum_lanes(intersection);
  sums[1] += sum_lanes(probability);
  sums[2] += sum_lanes(positive);
  sums[3] += sum_lanes(loss);
}

template <typename Activation, typename T>
SEGKERNELS_CLONES void block_loss(const T* input, const T* target, int64_t count, T pos_weight, T bce_scale, T dice,
                                  T* output) {
  using V = typename Lanes<T>::vector;
  alignas(32) T prepared[kBlock];
  prepare_block<Activation>(input, count, prepared);
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    const V t = load_vector<V>(target + i);
    V p, bce;
    Activation::loss(load_vector<V>(input + i), load_vector<V>(prepared + i), t, t * pos_weight, p, bce);
    store_vector(output + i, bce * bce_scale + dice);
  }
}

// `scale`, when given, multiplies the first term pixel by pixel (reduction 'none').
template <typename Activation, bool kSoftTarget, typename T>
SEGKERNELS_CLONES void block_gradient(const T* input, const T* target, const T* scale, int64_t count, T pos_weight,
                                      Slopes<T> slopes, T* output) {
  using V = typename Lanes<T>::vector;
  alignas(32) T prepared[kBlock];
  prepare_block<Activation>(input, count, prepared);
  const auto pixels = [&](int64_t i, V scaled) SEGKERNELS_INLINE_LAMBDA {
    const V t = load_vector<V>(target + i);
    V p, dp, dbce;
    Activation::slopes(load_vector<V>(input + i), load_vector<V>(prepared + i), t, t * pos_weight, p, dp, dbce);
    V inside = t;
    if constexpr (kSoftTarget) {
      inside = p < t ? V{} + 1 : (p > t ? V{} : V{} + T(0.5));
    }
    store_vector(output + i, dbce * scaled + dp * (inside * slopes.intersection + slopes.cardinality));
  };
  if (scale == nullptr) {
    for (int64_t i = 0; i < count; i += Lanes<T>::count) {
      pixels(i, V{} + slopes.bce);
    }
  } else {
    for (int64_t i = 0; i < count; i += Lanes<T>::count) {
      pixels(i, load_vector<V>(scale + i) * slopes.bce);
    }
  }
}

template <typename T>
SEGKERNELS_CLONES bool outside_unit_interval(const T* values, int64_t count) {
  int32_t outside = 0;
  for (int64_t i = 0; i < count; ++i) {
    outside |= (values[i] < 0) | (values[i] > 1);
  }
  return outside != 0;
}

// One block of both inputs in L1.
template <typename Activation, typename T>
struct InputBlock {
  alignas(32) T buffer[kBlock];
  TargetBlock<T> target;
  const T* input;

  void load(const Planes& inputs, const Planes& targets, const DiceBceParams& p, int64_t n, int64_t c, int64_t begin,
            int64_t count) {
    load_target_block(targets, n, c, begin, count, p.ignore_index, target);
    constexpr T neutral = static_cast<T>(Activation::kNeutral);
    input = load_block(inputs, n, c, begin, count, neutral, p.ignore_index.has_value(), buffer);
    if (target.masked) {
      replace_ignored(target.valid, count, neutral, buffer);
    }
  }
};

enum BadInput : int { kNone = 0, kWrongLabel = 1, kNotAProbability = 2 };

// Sums of every chunk, then of every plane in the order of its chunks. statistics: [N, C, 5].
template <typename Activation, bool kSoftTarget, typename T>
int collect(const DiceBceParams& p, const Planes& inputs, const Planes& targets, double* statistics) {
  const int64_t chunks = (p.pixels + kChunk - 1) / kChunk;
  std::vector<std::array<double, kStatistics>> partial(p.batch * p.channels * chunks);
  std::atomic<int> bad{kNone};
  for_each_chunk(p.batch, p.channels, p.pixels, [&](int64_t item, int64_t n, int64_t c, int64_t begin, int64_t end) {
    InputBlock<Activation, T> block;
    std::array<double, kStatistics> sums{};
    int seen = kNone;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      block.load(inputs, targets, p, n, c, i, count);
      seen |= block.target.wrong_label ? kWrongLabel : kNone;
      if (!p.from_logits && outside_unit_interval(block.input, count)) {
        seen |= kNotAProbability;
      }
      block_sums<Activation, kSoftTarget>(block.input, block.target.value, padded(count),
                                          static_cast<T>(p.pos_weight[c]), sums.data());
      sums[4] += static_cast<double>(block.target.valid_count);
    }
    partial[item] = sums;
    if (seen != kNone) {
      bad.fetch_or(seen, std::memory_order_relaxed);
    }
  });
  std::fill(statistics, statistics + p.batch * p.channels * kStatistics, 0.0);
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t c = 0; c < p.channels; ++c) {
        for (int64_t k = 0; k < kStatistics; ++k) {
          statistics[(n * p.channels + c) * kStatistics + k] += partial[(n * chunks + chunk) * p.channels + c][k];
        }
      }
    }
  }
  return bad.load();
}

// dice_weight * Dice of each plane's group as it enters the map, and the loss of each pixel.
template <typename Activation, typename T>
void write_losses(const DiceBceParams& p, const Planes& inputs, const Planes& targets,
                  const std::vector<DiceGroup>& groups, const Planes& outputs) {
  for_each_chunk(p.batch, p.channels, p.pixels, [&](int64_t, int64_t n, int64_t c, int64_t begin, int64_t end) {
    InputBlock<Activation, T> block;
    alignas(32) T output[kBlock];
    const DiceGroup& group = groups[n * p.channels + c];
    const double dice = p.dice_weight == 0 ? 0.0 : p.dice_weight * group.weight * group.loss;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      block.load(inputs, targets, p, n, c, i, count);
      block_loss<Activation>(block.input, block.target.value, padded(count), static_cast<T>(p.pos_weight[c]),
                             static_cast<T>(p.bce_weight * p.class_weights[c]), static_cast<T>(dice), output);
      if (block.target.masked) {
        replace_ignored(block.target.valid, count, T{0}, output);
      }
      store_block(output, outputs, n, c, i, count);
    }
  });
}

template <typename Activation, bool kSoftTarget, typename T>
void write_gradient(const DiceBceParams& p, const Planes& inputs, const Planes& targets, const Planes* scales,
                    const std::vector<Slopes<T>>& slopes, const Planes& outputs) {
  for_each_chunk(p.batch, p.channels, p.pixels, [&](int64_t, int64_t n, int64_t c, int64_t begin, int64_t end) {
    InputBlock<Activation, T> block;
    alignas(32) T scale_buffer[kBlock];
    alignas(32) T output[kBlock];
    // Straight into the tensor when its memory can take whole vectors.
    const bool direct = outputs.dtype == inputs.dtype && outputs.step() == 1 && !p.ignore_index &&
                        (outputs.dtype == ScalarType::Float || outputs.dtype == ScalarType::Double);
    T* const plane = direct ? static_cast<T*>(const_cast<void*>(outputs.data)) + outputs.start(n, c) : nullptr;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      block.load(inputs, targets, p, n, c, i, count);
      const T* scale = scales ? load_block(*scales, n, c, i, count, T{0}, false, scale_buffer) : nullptr;
      T* const to = direct && count % kBlockLanes == 0 ? plane + i : output;
      block_gradient<Activation, kSoftTarget>(block.input, block.target.value, scale, padded(count),
                                              static_cast<T>(p.pos_weight[c]), slopes[n * p.channels + c], to);
      if (block.target.masked) {
        replace_ignored(block.target.valid, count, T{0}, output);
      }
      if (to == output) {
        store_block(output, outputs, n, c, i, count);
      }
    }
  });
}

// Sum of a map's valid pixels in every plane: what the Dice term's gradient is scaled with in reduction 'none'.
template <typename T>
std::vector<double> sum_planes(const DiceBceParams& p, const Planes& values, const Planes& targets) {
  const int64_t chunks = (p.pixels + kChunk - 1) / kChunk;
  std::vector<double> partial(p.batch * p.channels * chunks);
  for_each_chunk(p.batch, p.channels, p.pixels, [&](int64_t item, int64_t n, int64_t c, int64_t begin, int64_t end) {
    T buffer[kBlock];
    TargetBlock<T> target;
    double sum = 0;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      load_block(values, n, c, i, count, T{0}, true, buffer);
      if (p.ignore_index) {
        load_target_block(targets, n, c, i, count, p.ignore_index, target);
        if (target.masked) {
          replace_ignored(target.valid, count, T{0}, buffer);
        }
      }
      for (int64_t k = 0; k < count; ++k) {
        sum += static_cast<double>(buffer[k]);
      }
    }
    partial[item] = sum;
  });
  std::vector<double> sums(p.batch * p.channels);
  for (size_t item = 0; item < partial.size(); ++item) {
    const int64_t n = static_cast<int64_t>(item) / (p.channels * chunks);
    sums[n * p.channels + static_cast<int64_t>(item) % p.channels] += partial[item];
  }
  return sums;
}

Planes planes_of(const Tensor& tensor, int64_t channels, int64_t pixels, bool channels_last) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), channels, pixels, channels_last};
}

// float for the half types, double for double: instantiates f<Activation, kSoftTarget, T>.
template <typename F>
void dispatch_kernel(const DiceBceParams& p, ScalarType dtype, const F& f) {
  const auto with_type = [&]<typename T>() {
    const auto with_activation = [&]<typename Activation>() {
      if (p.soft_target) {
        f.template operator()<Activation, true, T>();
      } else {
        f.template operator()<Activation, false, T>();
      }
    };
    if (p.from_logits) {
      with_activation.template operator()<FromLogits>();
    } else {
      with_activation.template operator()<FromProbabilities>();
    }
  };
  if (dtype == ScalarType::Double) {
    with_type.template operator()<double>();
  } else {
    with_type.template operator()<float>();
  }
}

std::tuple<Tensor, Tensor> dice_bce_loss_cpu(const Tensor& input,   // [N, C, H, W]
                                             const Tensor& target,  // [N, C, H, W]
                                             std::optional<Tensor> pos_weight, std::optional<Tensor> class_weights,
                                             double dice_weight, double bce_weight, double smooth,
                                             std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                             bool batch_dice, bool include_background, bool log_loss,
                                             bool from_logits) {
  const DiceBceParams p =
      make_params(input, target, pos_weight, class_weights, dice_weight, bce_weight, smooth, ignore_index, reduction,
                  style, batch_dice, include_background, log_loss, from_logits);
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const Planes inputs = planes_of(logits, p.channels, p.pixels, channels_last);
  const Planes targets = planes_of(labels, p.channels, p.pixels, target_last);
  const ScalarType loss_dtype = compute_type(input.scalar_type());

  Tensor statistics = empty({p.batch, p.channels, kStatistics}, ScalarType::Double, input);
  double* sums = static_cast<double*>(statistics.mutable_data_ptr());
  int bad = kNone;
  dispatch_kernel(p, input.scalar_type(), [&]<typename Activation, bool kSoftTarget, typename T>() {
    bad = collect<Activation, kSoftTarget, T>(p, inputs, targets, sums);
  });
  STD_TORCH_CHECK(!(bad & kWrongLabel), kDiceBceLoss, ": expected labels 0 and 1 in target",
                  ignore_index ? " (or ignore_index)" : "", ", found another");
  STD_TORCH_CHECK(!(bad & kNotAProbability), kDiceBceLoss,
                  ": expected probabilities in [0, 1] in input (from_logits=False)");

  const std::vector<DiceGroup> groups = dice_groups(p.dice, dice_sums(p, sums), p.batch, p.channels, p.class_weights);
  if (p.dice.reduction != Reduction::kNone) {
    Tensor loss = empty({}, loss_dtype, input);
    const double value = reduced_loss(p, sums, groups);
    if (loss_dtype == ScalarType::Double) {
      *static_cast<double*>(loss.mutable_data_ptr()) = value;
    } else {
      *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(value);
    }
    return {loss, statistics};
  }
  Tensor loss =
      empty_nchw(p.batch, p.channels, input.size(2), input.size(3), loss_dtype, input, channels_last);  // [N, C, H, W]
  dispatch_kernel(p, input.scalar_type(), [&]<typename Activation, bool, typename T>() {
    write_losses<Activation, T>(p, inputs, targets, groups, planes_of(loss, p.channels, p.pixels, channels_last));
  });
  return {loss, statistics};
}

Tensor dice_bce_loss_backward_cpu(const Tensor& grad_output,  // [] or, reduction 'none', [N, C, H, W]
                                  const Tensor& input,        // [N, C, H, W]
                                  const Tensor& target,       // [N, C, H, W]
                                  const Tensor& statistics,   // [N, C, 5]
                                  std::optional<Tensor> pos_weight, std::optional<Tensor> class_weights,
                                  double dice_weight, double bce_weight, double smooth,
                                  std::optional<int64_t> ignore_index, int64_t reduction, int64_t style,
                                  bool batch_dice, bool include_background, bool log_loss, bool from_logits) {
  const DiceBceParams p =
      make_params(input, target, pos_weight, class_weights, dice_weight, bce_weight, smooth, ignore_index, reduction,
                  style, batch_dice, include_background, log_loss, from_logits);
  check_statistics(statistics, p.batch, p.channels);
  const bool map = p.dice.reduction == Reduction::kNone;
  if (map) {
    check_same_shape(grad_output, input, "dice_bce_loss_backward", "grad_output", "input");
  } else {
    check_dim(grad_output, 0, "dice_bce_loss_backward", "grad_output");
  }
  const bool channels_last = is_channels_last(input);
  const bool target_last = is_channels_last(target);
  const Tensor logits = to_dense(input, channels_last);
  const Tensor labels = to_dense(target, target_last);
  const Tensor grad = to_dense(grad_output, map && channels_last);
  const Tensor totals = torch::stable::contiguous(statistics);
  const Planes inputs = planes_of(logits, p.channels, p.pixels, channels_last);
  const Planes targets = planes_of(labels, p.channels, p.pixels, target_last);
  const Planes scales = planes_of(grad, p.channels, p.pixels, channels_last);
  Tensor grad_input = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), input.scalar_type(), input,
                                 channels_last);  // [N, C, H, W]
  const Planes outputs = planes_of(grad_input, p.channels, p.pixels, channels_last);

  const double* sums = static_cast<const double*>(totals.const_data_ptr());
  const std::vector<DiceGroup> groups = dice_groups(p.dice, dice_sums(p, sums), p.batch, p.channels, p.class_weights);
  dispatch_kernel(p, input.scalar_type(), [&]<typename Activation, bool kSoftTarget, typename T>() {
    std::vector<double> upstream(p.batch * p.channels);
    double bce_upstream = 1;
    if (map) {
      upstream = sum_planes<T>(p, scales, targets);
      if (p.dice.batch_dice) {
        for (int64_t c = 0; c < p.channels; ++c) {
          double pooled = 0;
          for (int64_t n = 0; n < p.batch; ++n) {
            pooled += upstream[n * p.channels + c];
          }
          for (int64_t n = 0; n < p.batch; ++n) {
            upstream[n * p.channels + c] = pooled;
          }
        }
      }
    } else {
      dispatch_floating(grad.scalar_type(), "dice_bce_loss_backward", [&]<typename grad_t>() {
        bce_upstream =
            static_cast<double>(to_compute<accumulate_t<grad_t>>(*static_cast<const grad_t*>(grad.const_data_ptr())));
      });
      std::fill(upstream.begin(), upstream.end(), bce_upstream);
    }
    const std::vector<Slopes<T>> slopes = plane_slopes<T>(p, sums, groups, upstream, bce_upstream);
    write_gradient<Activation, kSoftTarget, T>(p, inputs, targets, map ? &scales : nullptr, slopes, outputs);
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("dice_bce_loss", TORCH_BOX(&dice_bce_loss_cpu));
  m.impl("dice_bce_loss_backward", TORCH_BOX(&dice_bce_loss_backward_cpu));
}

}  // namespace segkernels
