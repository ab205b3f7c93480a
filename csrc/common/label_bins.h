// Class labels of any integer dtype as bins of a histogram on the CPU. Labels that do not count get bins of their own
// behind the classes, so that no loop needs a branch: bin C holds ignored labels, bin C + 1 those outside [0, C).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <bit>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "dispatch.h"
#include "simd.h"

namespace segkernels {

using torch::stable::Tensor;

static_assert(std::endian::native == std::endian::little);  // label_bins parts 64-bit labels into words

constexpr int64_t kLabelBlock = 256;  // labels worth reading at once: bins and counters stay in L1

template <typename label_t>
struct LabelRule {
  int32_t classes;
  label_t ignored;
  int32_t ignored_bin;
};

template <typename label_t>
LabelRule<label_t> label_rule(int64_t classes, std::optional<int64_t> ignore_index) {
  const int32_t count = static_cast<int32_t>(classes);
  if (ignore_index.has_value() && static_cast<int64_t>(static_cast<label_t>(*ignore_index)) == *ignore_index) {
    return {count, static_cast<label_t>(*ignore_index), count};
  }
  return {count, label_t(0), 0};  // nothing is ignored: label 0 keeps bin 0
}

typedef int32_t bins_t __attribute__((vector_size(32)));

// Bins of labels[0..7], in the order 0 1 4 5 2 3 6 7. 64-bit comparisons and narrowing are slow before AVX-512: the
// labels are parted into low and high words, as floats, whose shuffle of two operands is one instruction.
SEGKERNELS_INLINE bins_t eight_bins(const int64_t* labels, const LabelRule<int64_t>& rule) {
  typedef uint32_t unsigned_t __attribute__((vector_size(32)));
  typedef float floats_t __attribute__((vector_size(32)));
  floats_t a, b;
  __builtin_memcpy(&a, labels, sizeof(a));
  __builtin_memcpy(&b, labels + 4, sizeof(b));
  const bins_t low = (bins_t)__builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  const bins_t high = (bins_t)__builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  const bins_t inside = ((unsigned_t)low < static_cast<uint32_t>(rule.classes)) & (high == 0);
  const bins_t bin = inside ? low : bins_t{} + (rule.classes + 1);
  if (rule.ignored_bin == 0) {
    return bin;
  }
  const bins_t ignored =
      (low == static_cast<int32_t>(rule.ignored)) & (high == static_cast<int32_t>(rule.ignored >> 32));
  return ignored ? bins_t{} + rule.ignored_bin : bin;
}

template <typename label_t>
SEGKERNELS_CLONES void label_bins(const label_t* labels, int64_t count, LabelRule<label_t> rule, int32_t* bins) {
  using wide_t = std::conditional_t<sizeof(label_t) == 8, uint64_t, uint32_t>;
  const uint32_t classes = static_cast<uint32_t>(rule.classes);
  const int32_t outside = rule.classes + 1;
  int64_t i = 0;
  if constexpr (sizeof(label_t) == 8) {
    for (; i + 8 <= count; i += 8) {
      // The next block: two tensors are read in turns, and the hardware's prefetcher starts anew at each.
      __builtin_prefetch(labels + i + kLabelBlock);
      bins_t bin = eight_bins(labels + i, rule);
      bin = __builtin_shufflevector(bin, bin, 0, 1, 4, 5, 2, 3, 6, 7);
      __builtin_memcpy(bins + i, &bin, sizeof(bin));
    }
  }
  for (; i < count; ++i) {
    const label_t label = labels[i];
    // Negative labels become huge.
    const bool inside = static_cast<wide_t>(label) < classes;
    const int32_t bin = inside ? static_cast<int32_t>(label) : outside;
    bins[i] = label == rule.ignored ? rule.ignored_bin : bin;
  }
}

template <typename F>
void dispatch_label(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    case ScalarType::Int:
      return f.template operator()<int32_t>();
    case ScalarType::Short:
      return f.template operator()<int16_t>();
    case ScalarType::Char:
      return f.template operator()<int8_t>();
    case ScalarType::Byte:
    case ScalarType::Bool:
      return f.template operator()<uint8_t>();
    default:
      STD_TORCH_CHECK(false, op, ": expected labels of an integer dtype or bool, got ", dtype);
  }
}

// A dense tensor of labels of any integer dtype, read as bins.
class Labels {
 public:
  Labels(const Tensor& labels, const char* op, int64_t classes, std::optional<int64_t> ignore_index)
      : dense_(labels.is_contiguous() ? labels : torch::stable::contiguous(labels)),
        classes_(classes),
        ignore_index_(ignore_index) {
    dispatch_label(dense_.scalar_type(), op, [&]<typename label_t>() { read_ = &Labels::read<label_t>; });
    data_ = dense_.const_data_ptr();
  }
  void bins(int64_t begin, int64_t count, int32_t* bins) const {
    (this->*read_)(begin, count, bins);
  }
  // The labels themselves where they are int64, else null.
  const int64_t* int64_data() const {
    return dense_.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(data_) : nullptr;
  }
  LabelRule<int64_t> int64_rule() const {
    return label_rule<int64_t>(classes_, ignore_index_);
  }

 private:
  template <typename label_t>
  void read(int64_t begin, int64_t count, int32_t* bins) const {
    label_bins(static_cast<const label_t*>(data_) + begin, count, label_rule<label_t>(classes_, ignore_index_), bins);
  }

  Tensor dense_;
  const void* data_;
  int64_t classes_;
  std::optional<int64_t> ignore_index_;
  void (Labels::*read_)(int64_t, int64_t, int32_t*) const;
};

}  // namespace segkernels
