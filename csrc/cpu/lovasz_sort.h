// The sum over sorted errors that the Lovasz extension is: a stable radix sort of their bits, largest first, after
// which the Jaccard gradient at each rank is a function of two counts and goes straight to its pixel.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "../common/simd.h"

namespace segkernels {

template <typename T>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

constexpr uint32_t kPositive = uint32_t{1} << 31;  // set in Entry::place where the pixel is of the class

template <typename T>
struct Entry {
  typename KeyOf<T>::type key;
  uint32_t place;
};

// The order of keys is the order of errors, largest and NaN first. Errors are not negative.
template <typename T>
SEGKERNELS_INLINE typename KeyOf<T>::type key_of(T error) {
  using Key = typename KeyOf<T>::type;
  return ~(bit_cast<Key>(error) & (~Key{0} >> 1));
}

template <typename T>
SEGKERNELS_INLINE T error_of(typename KeyOf<T>::type key) {
  return bit_cast<T>(~key);  // the sign's bit is set in every key
}

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// Entries of one class, and what sorting them takes. Memory is reserved before any thread starts.
template <typename T>
struct Sorter {
  using Key = typename KeyOf<T>::type;
  static constexpr int kPasses = (sizeof(Key) * 8 + kDigitBits - 1) / kDigitBits;

  std::vector<Entry<T>> entries, other;
  std::vector<std::array<uint32_t, kDigits>> histogram = std::vector<std::array<uint32_t, kDigits>>(kPasses);
  int64_t count = 0;

  explicit Sorter(int64_t capacity) : entries(capacity), other(capacity) {}

  // Adds the error where `keep`; without a branch, since which are kept cannot be predicted.
  SEGKERNELS_INLINE void add(T error, uint32_t place, bool keep) {
    entries[count] = {key_of(error), place};
    count += keep;
  }

  // Stable: equal errors stay in the order in which they were added.
  const Entry<T>* sort() {
    for (auto& digits : histogram) {
      digits.fill(0);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int pass = 0; pass < kPasses; ++pass) {
        ++histogram[pass][entries[i].key >> (pass * kDigitBits) & (kDigits - 1)];
      }
    }
    Entry<T>* from = entries.data();
    Entry<T>* to = other.data();
    for (int pass = 0; pass < kPasses; ++pass) {
      auto& digits = histogram[pass];
      const int shift = pass * kDigitBits;
      if (count == 0 || static_cast<int64_t>(digits[from[0].key >> shift & (kDigits - 1)]) == count) {
        continue;  // one digit for all
      }
      uint32_t start = 0;
      for (uint32_t& digit : digits) {
        start += std::exchange(digit, start);
      }
      for (int64_t i = 0; i < count; ++i) {
        to[digits[from[i].key >> shift & (kDigits - 1)]++] = from[i];
      }
      std::swap(from, to);
    }
    return from;
  }

  // Loss of the errors added, of which `positives` pixels are of the class, sorted or not. Writes the derivative by
  // what the error falls with (the logit or the probability), times `scale`, to slopes[place].
  double finish(int64_t positives, double scale, T* slopes) {
    const Entry<T>* sorted = sort();
    double loss = 0;
    double intersection = static_cast<double>(positives);
    double union_ = static_cast<double>(positives);
    for (int64_t i = 0; i < count; ++i) {
      const bool positive = sorted[i].place & kPositive;
      // How much 1 - intersection / union grows with this pixel; the first one decides where the class is absent.
      const double above = positive ? union_ + 1 : intersection;
      const double step = union_ == 0 ? 1 : above / (union_ * (union_ + 1));
      intersection -= positive;
      union_ += !positive;
      loss += static_cast<double>(error_of<T>(sorted[i].key)) * step;
      slopes[sorted[i].place & ~kPositive] = static_cast<T>(positive ? -step * scale : step * scale);
    }
    count = 0;
    return loss * scale;
  }
};

}  // namespace segkernels
