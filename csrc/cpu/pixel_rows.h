// Maps as rows of pixels, [N, H, W, C] in the type of the sums: what products over shifted maps read. A tap is then a
// pointer to a pixel, so that nothing is packed or padded for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../common/gemm.h"
#include "../common/loss_blocks.h"
#include "../common/parallel.h"
#include "../common/transpose.h"

namespace segkernels {

struct Pixel {
  int64_t n, y, x;
};

// A tap reads the pixel at (y + dy, x + dx), from `channel` on.
struct Tap {
  int64_t dy, dx, channel;
};

// The tensor's own memory where that is channels_last in the type of the sums, else a copy.
template <typename acc_t>
class PixelRows {
 public:
  // `tensor` [N, C, H, W] is dense.
  PixelRows(const Tensor& tensor, bool channels_last)
      : batch(tensor.size(0)),
        channels(tensor.size(1)),
        height(tensor.size(2)),
        width(tensor.size(3)),
        step_(channels),
        copy_(0),
        data_(nullptr) {
    dispatch_floating(tensor.scalar_type(), "pixel rows", [&]<typename T>() {
      const T* from = static_cast<const T*>(tensor.const_data_ptr());
      if constexpr (std::is_same_v<T, acc_t>) {
        if (channels_last) {
          data_ = from;
          return;
        }
      }
      if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
        constexpr int64_t kPage = 1024 / sizeof(acc_t);
        step_ += channels % kPage == 0 ? 16 : 0;  // pixels that a product reads at once shall not share L1's sets
        copy_ = Scratch<acc_t>(batch * height * width * step_);
        data_ = copy_.get();
        copy(from, channels_last);
      }
    });
  }

  int64_t batch, channels, height, width;

  // Null in the padding.
  const acc_t* at(const Pixel& pixel, const Tap& tap) const {
    const int64_t y = pixel.y + tap.dy, x = pixel.x + tap.dx;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    return inside ? data_ + ((pixel.n * height + y) * width + x) * step_ + tap.channel : nullptr;
  }

 private:
  template <typename T>
  void copy(const T* from, bool channels_last) {
    constexpr int64_t kBlock = 64;
    const int64_t plane = height * width;
    const int64_t blocks = (plane + kBlock - 1) / kBlock;
    parallel_items(batch * blocks, kBlock * channels, [&](int64_t begin, int64_t end) {
      acc_t buffer[kBlock * kBlock];
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item / blocks, first = item % blocks * kBlock;
        const int64_t count = std::min(kBlock, plane - first);
        acc_t* to = copy_.get() + (n * plane + first) * step_;
        if (channels_last) {
          for (int64_t i = 0; i < count; ++i) {
            load_values(from + (n * plane + first + i) * channels, 1, channels, to + i * step_);
          }
          continue;
        }
        for (int64_t c0 = 0; c0 < channels; c0 += kBlock) {
          const int64_t rows = std::min(kBlock, channels - c0);
          const T* source = from + (n * channels + c0) * plane + first;
          if constexpr (std::is_same_v<T, acc_t>) {
            transpose(source, plane, rows, count, to + c0, step_);
          } else {
            for (int64_t c = 0; c < rows; ++c) {
              load_values(source + c * plane, 1, count, buffer + c * kBlock);
            }
            transpose(buffer, kBlock, rows, count, to + c0, step_);
          }
        }
      }
    });
  }

  int64_t step_;  // from pixel to pixel
  Scratch<acc_t> copy_;
  const acc_t* data_;
};

}  // namespace segkernels
