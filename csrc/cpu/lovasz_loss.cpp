// Lovasz hinge and Lovasz-softmax on the CPU. The errors of every class are sorted once (lovasz_sort.h). Errors that
// are 0 (or below, for the hinge) have no part in the loss or its gradient and are not sorted.
#include <torch/csrc/stable/library.h>

#include <numeric>
#include <tuple>

#include "../common/check.h"
#include "../common/loss_blocks.h"
#include "../common/lovasz_check.h"
#include "lovasz_sort.h"

namespace segkernels {
namespace {

struct LovaszParams {
  Errors errors;
  int64_t batch, channels, pixels;
  int64_t groups;  // the batch, or 1: how many separate losses there are
  std::optional<int64_t> ignore_index;

  int64_t samples() const {  // of one group
    return groups == 0 ? 0 : batch / groups;
  }
};

// f(slot, item) for every item; no two items of one slot run at once, so a slot may own memory.
template <typename F>
void for_each_item(int64_t slots, int64_t items, const F& f) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t item = slot; item < items; item += slots) {
        f(slot, item);
      }
    }
  };
  if (slots > 1) {
    torch::stable::parallel_for(0, slots, 1, run);
  } else {
    run(0, slots);
  }
}

int64_t count_slots(int64_t items, int64_t elements) {
  return elements <= kGrainElements ? 1 : std::min<int64_t>(items, torch::stable::get_num_threads());
}

// Target classes of all pixels, -1 where ignored. False with a label that is no class.
bool read_labels(const LovaszParams& p, const Tensor& target, std::vector<int32_t>& labels) {
  labels.resize(p.batch * p.pixels);
  std::atomic<bool> wrong{false};
  dispatch_target(target.scalar_type(), kLovaszLoss, [&]<typename target_t>() {
    if constexpr (std::is_integral_v<target_t>) {
      const target_t* from = static_cast<const target_t*>(target.const_data_ptr());
      const IgnoreLabel<target_t> ignore(p.ignore_index);
      parallel_items(static_cast<int64_t>(labels.size()), 1, [&](int64_t begin, int64_t end) {
        bool bad = false;
        for (int64_t i = begin; i < end; ++i) {
          const int64_t label = static_cast<int64_t>(from[i]);
          const bool ignored = ignore.active && from[i] == ignore.label;
          bad |= !ignored && (label < 0 || label >= p.channels);
          labels[i] = ignored ? -1 : static_cast<int32_t>(label);
        }
        if (bad) {
          wrong.store(true, std::memory_order_relaxed);
        }
      });
    } else {
      wrong.store(true, std::memory_order_relaxed);
    }
  });
  return !wrong.load();
}

// A block of all channels of one sample: rows[c * kBlock + i].
template <typename T>
SEGKERNELS_CLONES void softmax_rows(T* rows, int64_t channels, int64_t count) {
  using V = typename Lanes<T>::vector;
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    V top = load_vector<V>(rows + i);
    for (int64_t c = 1; c < channels; ++c) {
      const V x = load_vector<V>(rows + c * kBlock + i);
      top = x > top ? x : top;
    }
    V sum{};
    for (int64_t c = 0; c < channels; ++c) {
      const V e = exp_nonpositive(load_vector<V>(rows + c * kBlock + i) - top);
      store_vector(rows + c * kBlock + i, e);
      sum += e;
    }
    const V scale = 1 / sum;
    for (int64_t c = 0; c < channels; ++c) {
      store_vector(rows + c * kBlock + i, load_vector<V>(rows + c * kBlock + i) * scale);
    }
  }
}

// rows (probabilities) become upstream * p * (slope - sum(p * slope)); 0 without a slope, whatever an ignored pixel
// holds.
template <typename T>
SEGKERNELS_CLONES void softmax_gradient(const T* slopes, int64_t step, int64_t channels, int64_t count, T upstream,
                                        T* rows) {
  T sum[kBlock] = {};
  int32_t used[kBlock] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      sum[i] += rows[c * kBlock + i] * slopes[c * step + i];
      used[i] |= slopes[c * step + i] != 0;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      const T grad = rows[c * kBlock + i] * (upstream * (slopes[c * step + i] - sum[i]));
      rows[c * kBlock + i] = used[i] ? grad : 0;
    }
  }
}

// Calls f(n, begin, count, rows) for blocks of pixels with the probabilities of all channels in rows.
template <typename T, typename F>
void for_each_block(const LovaszParams& p, const Planes& inputs, const F& f) {
  const int64_t blocks = (p.pixels + kBlock - 1) / kBlock;
  const int64_t items = p.batch * blocks;
  const int64_t slots = count_slots(items, items * std::min(p.pixels, kBlock) * p.channels);
  std::vector<T> memory(slots * p.channels * kBlock);
  for_each_item(slots, items, [&](int64_t slot, int64_t item) {
    T* rows = memory.data() + slot * p.channels * kBlock;
    const int64_t n = item / blocks;
    const int64_t begin = item % blocks * kBlock;
    const int64_t count = std::min(kBlock, p.pixels - begin);
    for (int64_t c = 0; c < p.channels; ++c) {
      load_block(inputs, n, c, begin, count, T{0}, true, rows + c * kBlock);
    }
    if (p.errors == Errors::kSoftmax) {
      softmax_rows(rows, p.channels, padded(count));
    }
    f(n, begin, count, rows);
  });
}

// Errors of one class of one group; `slopes` holds its probabilities on entry. Planes of the group's samples are
// channels * pixels apart.
template <typename T>
void add_class(const LovaszParams& p, int32_t c, const int32_t* labels, T* slopes, Sorter<T>& sorter) {
  for (int64_t n = 0; n < p.samples(); ++n) {
    const int64_t start = n * p.channels * p.pixels;
    for (int64_t i = 0; i < p.pixels; ++i) {
      const int32_t label = labels[n * p.pixels + i];
      const T value = slopes[start + i];
      const T error = label == c ? 1 - value : value;
      sorter.add(error, static_cast<uint32_t>(start + i) | (label == c ? kPositive : 0), label >= 0 && !(error <= 0));
    }
    std::fill(slopes + start, slopes + start + p.pixels, T{0});
  }
}

template <typename T>
void softmax_losses(const LovaszParams& p, const Planes& inputs, const std::vector<int32_t>& labels, bool all_classes,
                    T* losses, T* slopes) {
  for_each_block<T>(p, inputs, [&](int64_t n, int64_t begin, int64_t count, const T* rows) {
    for (int64_t c = 0; c < p.channels; ++c) {
      std::copy_n(rows + c * kBlock, count, slopes + (n * p.channels + c) * p.pixels + begin);
    }
  });
  const int64_t size = p.samples() * p.pixels;  // of a group
  std::vector<int64_t> positives(p.groups * p.channels);
  std::vector<int64_t> classes(p.groups);  // over which a group's loss is the mean
  for (int64_t g = 0; g < p.groups; ++g) {
    bool any = false;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      if (labels[i] >= 0) {
        ++positives[g * p.channels + labels[i]];
        any = true;
      }
    }
    for (int64_t c = 0; any && c < p.channels; ++c) {
      classes[g] += all_classes || positives[g * p.channels + c] > 0;
    }
  }
  const int64_t items = p.groups * p.channels;
  const int64_t slots = count_slots(items, items * size);
  std::vector<Sorter<T>> sorters(slots, Sorter<T>(size + 1));
  std::vector<double> class_losses(items);
  for_each_item(slots, items, [&](int64_t slot, int64_t item) {
    const int64_t g = item / p.channels;
    const int64_t c = item % p.channels;
    T* group = slopes + (g * p.samples() * p.channels + c) * p.pixels;
    if (classes[g] == 0 || (!all_classes && positives[item] == 0)) {
      for (int64_t n = 0; n < p.samples(); ++n) {
        std::fill_n(group + n * p.channels * p.pixels, p.pixels, T{0});
      }
      return;
    }
    add_class(p, static_cast<int32_t>(c), labels.data() + g * size, group, sorters[slot]);
    class_losses[item] = sorters[slot].finish(positives[item], 1.0 / static_cast<double>(classes[g]), group);
  });
  for (int64_t g = 0; g < p.groups; ++g) {
    const double* first = class_losses.data() + g * p.channels;
    losses[g] = static_cast<T>(std::accumulate(first, first + p.channels, 0.0));
  }
}

// Errors of one group; false with a label other than 0 and 1.
template <typename T>
bool add_hinge(const Planes& inputs, const Planes& targets, int64_t g, std::optional<int64_t> ignore_index,
               Sorter<T>& sorter, int64_t& positives) {
  alignas(32) T buffer[kBlock];
  TargetBlock<T> target;
  bool wrong = false;
  positives = 0;
  for (int64_t begin = 0; begin < inputs.pixels; begin += kBlock) {
    const int64_t count = std::min(kBlock, inputs.pixels - begin);
    load_target_block(targets, g, 0, begin, count, ignore_index, target);
    const T* x = load_block(inputs, g, 0, begin, count, T{0}, false, buffer);
    wrong |= target.wrong_label;
    for (int64_t i = 0; i < count; ++i) {
      const T t = target.value[i];
      const bool valid = !target.masked || target.valid[i];
      const T error = 1 - x[i] * (2 * t - 1);
      wrong |= t != 0 && t != 1;
      positives += t == 1;
      sorter.add(error, static_cast<uint32_t>(begin + i) | (t == 1 ? kPositive : 0), valid && !(error <= 0));
    }
  }
  return !wrong;
}

template <typename T>
bool hinge_losses(const LovaszParams& p, const Planes& inputs, const Planes& targets, T* losses, T* slopes) {
  const int64_t size = inputs.pixels;
  const int64_t slots = count_slots(p.groups, p.groups * size);
  std::vector<Sorter<T>> sorters(slots, Sorter<T>(size + 1));
  std::atomic<bool> wrong{false};
  for_each_item(slots, p.groups, [&](int64_t slot, int64_t g) {
    int64_t positives = 0;
    if (!add_hinge(inputs, targets, g, p.ignore_index, sorters[slot], positives)) {
      wrong.store(true, std::memory_order_relaxed);
    }
    std::fill_n(slopes + g * size, size, T{0});
    losses[g] = static_cast<T>(sorters[slot].finish(positives, 1.0, slopes + g * size));
  });
  return !wrong.load();
}

LovaszParams make_params(const Tensor& input, const Tensor& target, int64_t errors, std::optional<int64_t> ignore_index,
                         bool per_image) {
  check_lovasz(input, target, errors, per_image);
  LovaszParams p{
      static_cast<Errors>(errors), input.size(0), input.size(1), input.size(2) * input.size(3), 0, ignore_index};
  p.groups = per_image ? p.batch : 1;
  return p;
}

Planes planes_of(const Tensor& tensor, const LovaszParams& p, bool channels_last) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), p.channels, p.pixels, channels_last};
}

// All values of a group as one plane.
Planes groups_of(const Tensor& tensor, const LovaszParams& p) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), 1, p.samples() * p.channels * p.pixels, false};
}

std::tuple<Tensor, Tensor> lovasz_loss_cpu(const Tensor& input,   // [N, C, H, W]
                                           const Tensor& target,  // as input for the hinge, else [N, H, W]
                                           int64_t errors, std::optional<int64_t> ignore_index, bool per_image,
                                           bool all_classes) {
  const LovaszParams p = make_params(input, target, errors, ignore_index, per_image);
  const bool hinge = p.errors == Errors::kHinge;
  const bool channels_last = !hinge && is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor classes = to_dense(target, false);
  const ScalarType dtype = compute_type(input.scalar_type());
  Tensor loss = empty({p.groups}, dtype, input);
  Tensor slopes = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), dtype, input, false);
  dispatch_compute(dtype, [&]<typename T>() {
    T* losses = static_cast<T*>(loss.mutable_data_ptr());
    T* to = static_cast<T*>(slopes.mutable_data_ptr());
    if (hinge) {
      const bool right = hinge_losses(p, groups_of(values, p), groups_of(classes, p), losses, to);
      STD_TORCH_CHECK(right, kLovaszLoss, ": expected labels 0 and 1 in target",
                      ignore_index ? " (or ignore_index)" : "", ", found another");
    } else {
      std::vector<int32_t> labels;
      const bool right = read_labels(p, classes, labels);
      STD_TORCH_CHECK(right, kLovaszLoss, ": expected integer labels in [0, ", p.channels, ") in target",
                      ignore_index ? " (or ignore_index)" : "", ", found another");
      softmax_losses(p, planes_of(values, p, channels_last), labels, all_classes, losses, to);
    }
  });
  return {loss, slopes};
}

Tensor lovasz_loss_backward_cpu(const Tensor& grad_output,  // [groups]
                                const Tensor& input,        // [N, C, H, W]
                                const Tensor& slopes,       // [N, C, H, W]
                                int64_t errors, bool per_image) {
  LovaszParams p{static_cast<Errors>(errors),   input.size(0), input.size(1), input.size(2) * input.size(3),
                 per_image ? input.size(0) : 1, std::nullopt};
  check_lovasz_gradient(grad_output, input, slopes, p.groups);
  const bool channels_last = is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor steps = to_dense(slopes, false);
  const Tensor grad = torch::stable::contiguous(grad_output);
  Tensor grad_input = empty_nchw(p.batch, p.channels, input.size(2), input.size(3), input.scalar_type(), input,
                                 channels_last);  // [N, C, H, W]
  const Planes outputs = planes_of(grad_input, p, channels_last);
  dispatch_compute(slopes.scalar_type(), [&]<typename T>() {
    const T* upstream = static_cast<const T*>(grad.const_data_ptr());
    const T* from = static_cast<const T*>(steps.const_data_ptr());
    for_each_block<T>(p, planes_of(values, p, channels_last), [&](int64_t n, int64_t begin, int64_t count, T* rows) {
      const T scale = upstream[per_image ? n : 0];
      const T* slope = from + n * p.channels * p.pixels + begin;
      if (p.errors == Errors::kSoftmax) {
        softmax_gradient(slope, p.pixels, p.channels, count, scale, rows);
      } else {
        for (int64_t c = 0; c < p.channels; ++c) {
          for (int64_t i = 0; i < count; ++i) {
            rows[c * kBlock + i] = slope[c * p.pixels + i] * scale;
          }
        }
      }
      for (int64_t c = 0; c < p.channels; ++c) {
        store_block(rows + c * kBlock, outputs, n, c, begin, count);
      }
    });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("lovasz_loss", TORCH_BOX(&lovasz_loss_cpu));
  m.impl("lovasz_loss_backward", TORCH_BOX(&lovasz_loss_backward_cpu));
}

}  // namespace segkernels
