// Reading and writing values in every dtype, compiled once for all operators.
#include "loss_blocks.h"

namespace segkernels {

template <typename T, typename scalar_t>
SEGKERNELS_CLONES void load_values(const scalar_t* from, int64_t step, int64_t count, T* to) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = to_compute<T>(from[i]);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = to_compute<T>(from[i * step]);
    }
  }
}

template <typename T, typename scalar_t>
SEGKERNELS_CLONES void store_values(const T* from, int64_t step, int64_t count, scalar_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    store_value(to[i * step], from[i]);
  }
}

template <typename T>
SEGKERNELS_CLONES void replace_ignored(const int32_t* valid, int64_t count, T with, T* values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = valid[i] ? values[i] : with;
  }
}

#define SEGKERNELS_VALUES(T, scalar_t)                              \
  template void load_values(const scalar_t*, int64_t, int64_t, T*); \
  template void store_values(const T*, int64_t, int64_t, scalar_t*);
#define SEGKERNELS_VALUES_OF(T)  \
  SEGKERNELS_VALUES(T, float)    \
  SEGKERNELS_VALUES(T, double)   \
  SEGKERNELS_VALUES(T, half)     \
  SEGKERNELS_VALUES(T, bfloat16) \
  template void replace_ignored(const int32_t*, int64_t, T, T*);
SEGKERNELS_VALUES_OF(float)
SEGKERNELS_VALUES_OF(double)
#undef SEGKERNELS_VALUES_OF
#undef SEGKERNELS_VALUES

template <typename T>
const T* load_block(const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count, T neutral, bool copy,
                    T* buffer) {
  const int64_t step = planes.step();
  const int64_t offset = planes.start(n, c) + begin * step;
  const T* block = buffer;
  dispatch_floating(planes.dtype, "load_block", [&]<typename scalar_t>() {
    const scalar_t* from = static_cast<const scalar_t*>(planes.data) + offset;
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (!copy && step == 1 && count % kBlockLanes == 0) {
        block = from;
        return;
      }
    }
    if constexpr (std::is_same_v<accumulate_t<scalar_t>, T>) {
      load_values(from, step, count, buffer);
      std::fill(buffer + count, buffer + padded(count), neutral);
    }
  });
  return block;
}

template <typename T>
void store_block(const T* from, const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count) {
  const int64_t step = planes.step();
  const int64_t offset = planes.start(n, c) + begin * step;
  dispatch_floating(planes.dtype, "store_block", [&]<typename scalar_t>() {
    if constexpr (std::is_same_v<accumulate_t<scalar_t>, T>) {
      store_values(from, step, count, static_cast<scalar_t*>(const_cast<void*>(planes.data)) + offset);
    }
  });
}

namespace {

template <typename T, typename target_t>
SEGKERNELS_CLONES void load_target(const target_t* from, int64_t step, int64_t count, IgnoreLabel<target_t> ignore,
                                   TargetBlock<T>& block) {
  using label_t = std::conditional_t<std::is_integral_v<target_t>, target_t, T>;
  // Strided and half-precision labels are brought together first, so that the loops below vectorise.
  label_t staged[kBlock];
  const label_t* labels = staged;
  if constexpr (std::is_same_v<target_t, label_t>) {
    labels = step == 1 ? from : staged;
  }
  if (labels == staged) {
    load_values(from, step, count, staged);
  }
  block.masked = ignore.active;
  block.valid_count = count;
  int32_t valid_count = 0;
  target_t wrong{};
  if (ignore.active) {
    const label_t ignored = to_compute<label_t>(ignore.label);
    for (int64_t i = 0; i < count; ++i) {
      block.valid[i] = labels[i] != ignored;
    }
    for (int64_t i = 0; i < count; ++i) {
      valid_count += block.valid[i];
    }
    block.valid_count = valid_count;
    if constexpr (std::is_integral_v<target_t>) {
      for (int64_t i = 0; i < count; ++i) {
        wrong |= labels[i] == ignored ? 0 : labels[i] & ~target_t{1};
      }
    }
  } else if constexpr (std::is_integral_v<target_t>) {
    for (int64_t i = 0; i < count; ++i) {
      wrong |= labels[i] & ~target_t{1};
    }
  }
  if constexpr (std::is_integral_v<target_t>) {
    block.wrong_label = wrong != 0;
    for (int64_t i = 0; i < count; ++i) {
      block.buffer[i] = static_cast<T>(static_cast<int32_t>(labels[i]));
    }
  } else {
    std::copy(labels, labels + count, block.buffer);
  }
  if (ignore.active) {
    replace_ignored(block.valid, count, T{0}, block.buffer);
  }
  std::fill(block.buffer + count, block.buffer + padded(count), T{0});
}

}  // namespace

template <typename T>
void load_target_block(const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count,
                       std::optional<int64_t> ignore_index, TargetBlock<T>& block) {
  const int64_t step = planes.step();
  const int64_t offset = planes.start(n, c) + begin * step;
  dispatch_target(planes.dtype, "load_target_block", [&]<typename target_t>() {
    const target_t* from = static_cast<const target_t*>(planes.data) + offset;
    if constexpr (std::is_same_v<target_t, T>) {
      if (!ignore_index && step == 1 && count % kBlockLanes == 0) {
        block.value = from;
        block.masked = false;
        block.valid_count = count;
        return;
      }
    }
    load_target(from, step, count, IgnoreLabel<target_t>(ignore_index), block);
    block.value = block.buffer;
  });
}

#define SEGKERNELS_BLOCKS(T)                                                                                 \
  template const T* load_block(const Planes&, int64_t, int64_t, int64_t, int64_t, T, bool, T*);              \
  template void store_block(const T*, const Planes&, int64_t, int64_t, int64_t, int64_t);                    \
  template void load_target_block(const Planes&, int64_t, int64_t, int64_t, int64_t, std::optional<int64_t>, \
                                  TargetBlock<T>&);
SEGKERNELS_BLOCKS(float)
SEGKERNELS_BLOCKS(double)
#undef SEGKERNELS_BLOCKS

}  // namespace segkernels
