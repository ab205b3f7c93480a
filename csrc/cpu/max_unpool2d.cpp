// Max-unpooling on the CPU. Values are only moved, so kernels are instantiated by element size, not by dtype.
//
// Two paths. Windows of the pooling that tile the plane (kernel == stride, no padding) with every index inside its own
// window: the output is written once, zeros included, with selects instead of a fill and a scatter. Anything else: fill
// and scatter in raster order, so that the last duplicate wins, and backward asks which entry won.
#include "../common/max_unpool2d.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "max_unpool2d_tiled.h"

namespace segkernels {
namespace {

// First invalid entry in raster order of the whole tensor, reported after the parallel region.
class FirstInvalid {
 public:
  void record(int64_t entry) {
    int64_t seen = entry_.load(std::memory_order_relaxed);
    while (entry < seen && !entry_.compare_exchange_weak(seen, entry, std::memory_order_relaxed)) {
    }
  }
  int64_t entry() const {
    return entry_.load();
  }
  bool found() const {
    return entry() != INT64_MAX;
  }

 private:
  std::atomic<int64_t> entry_{INT64_MAX};
};

// Element strides of one plane, whichever the layout.
struct PlaneLayout {
  int64_t step;  // between neighbouring entries of a row
  int64_t in_offset, out_offset;
};

PlaneLayout plane_layout(const MaxUnpool2dParams& p, int64_t plane) {
  if (!p.channels_last) {
    return {1, plane * p.in_plane(), plane * p.out_plane()};
  }
  const int64_t n = plane / p.channels;
  const int64_t c = plane - n * p.channels;
  return {p.channels, n * p.channels * p.in_plane() + c, n * p.channels * p.out_plane() + c};
}

template <typename T, typename index_t>
void scatter_plane(const MaxUnpool2dParams& p, int64_t plane, const T* input, const index_t* indices, T* output,
                   FirstInvalid& invalid) {
  const PlaneLayout layout = plane_layout(p, plane);
  T* out = output + layout.out_offset;
  if (layout.step == 1) {
    std::memset(static_cast<void*>(out), 0, p.out_plane() * sizeof(T));
  } else {
    for (int64_t i = 0; i < p.out_plane(); ++i) {
      out[i * layout.step] = T(0);
    }
  }
  for (int64_t y = 0; y < p.in_h; ++y) {
    for (int64_t x = 0; x < p.in_w; ++x) {
      const int64_t entry = layout.in_offset + (y * p.in_w + x) * layout.step;
      const int64_t position = unpool_position(p, indices[entry], y, x);
      if (position < 0) {
        invalid.record(entry);
      } else {
        out[position * layout.step] = input[entry];
      }
    }
  }
}

// `winner` is scratch of one output plane; it needs no initial value, since only written positions are read.
template <typename T, typename index_t>
void gather_plane(const MaxUnpool2dParams& p, int64_t plane, const T* grad_output, const index_t* indices,
                  T* grad_input, int64_t* winner, FirstInvalid& invalid) {
  const PlaneLayout layout = plane_layout(p, plane);
  const T* grad = grad_output + layout.out_offset;
  for (int pass = winner ? 0 : 1; pass < 2; ++pass) {
    for (int64_t y = 0; y < p.in_h; ++y) {
      for (int64_t x = 0; x < p.in_w; ++x) {
        const int64_t entry = layout.in_offset + (y * p.in_w + x) * layout.step;
        const int64_t position = unpool_position(p, indices[entry], y, x);
        if (pass == 0) {
          if (position >= 0) {
            winner[position] = entry;
          }
        } else if (position < 0) {
          invalid.record(entry);
          grad_input[entry] = T(0);
        } else {
          grad_input[entry] = !winner || winner[position] == entry ? grad[position * layout.step] : T(0);
        }
      }
    }
  }
}

template <typename T>
void scatter_plane(const MaxUnpool2dParams& p, int64_t plane, const T* input, const IndexRun& indices, T* output,
                   FirstInvalid& invalid) {
  if (indices.positions) {
    scatter_plane(p, plane, input, indices.positions, output, invalid);
  } else {
    scatter_plane(p, plane, input, indices.offsets, output, invalid);
  }
}

template <typename T>
void unpool_all(const MaxUnpool2dParams& p, const T* input, const IndexRun& indices, T* output, FirstInvalid& invalid) {
  const bool tiled = tiles_2x2(p);
  if (!p.channels_last) {
    parallel_items(p.planes(), p.out_plane(), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t entry = plane * p.in_plane();
        if (!tiled || !unpool_plane_2x2(p, input + entry, indices + entry, output + plane * p.out_plane())) {
          scatter_plane(p, plane, input, indices, output, invalid);
        }
      }
    });
    return;
  }
  std::atomic<bool> all_own{tiled};
  if (tiled) {
    // Output rows beyond the windows belong to the last pooled row.
    parallel_items(p.batch * p.in_h, 4 * p.in_w * p.channels, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end && all_own.load(std::memory_order_relaxed); ++item) {
        const int64_t n = item / p.in_h;
        const int64_t y = item - n * p.in_h;
        T* row = output + (n * p.out_plane() + 2 * y * p.out_w) * p.channels;
        const int64_t entry = (n * p.in_plane() + y * p.in_w) * p.channels;
        for (int64_t x = 0; x < p.in_w; ++x) {
          T* first = row + 2 * x * p.channels;
          T* second = first + p.out_w * p.channels;
          T* const pixel[4] = {first, first + p.channels, second, second + p.channels};
          if (!unpool_pixel_2x2(input + entry + x * p.channels, indices + entry + x * p.channels, p.channels,
                                2 * y * p.out_w + 2 * x, p.out_w, pixel)) {
            all_own = false;
            return;
          }
        }
        const int64_t tail = (p.out_w - 2 * p.in_w) * p.channels * sizeof(T);
        std::memset(static_cast<void*>(row + 2 * p.in_w * p.channels), 0, tail);
        std::memset(static_cast<void*>(row + (p.out_w + 2 * p.in_w) * p.channels), 0, tail);
        if (y == p.in_h - 1) {
          std::memset(static_cast<void*>(row + 2 * p.out_w * p.channels), 0,
                      (p.out_h - 2 * p.in_h) * p.out_w * p.channels * sizeof(T));
        }
      }
    });
  }
  if (!all_own) {
    parallel_items(p.planes(), p.out_plane(), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        scatter_plane(p, plane, input, indices, output, invalid);
      }
    });
  }
}

template <typename T>
void unpool_all_backward(const MaxUnpool2dParams& p, const T* grad_output, const IndexRun& indices, T* grad_input,
                         FirstInvalid& invalid) {
  const bool tiled = tiles_2x2(p);
  // Window offsets in disjoint windows cannot collide, so nobody has to be asked who won.
  const bool may_collide = indices.positions || !p.disjoint_windows();
  const auto gather = [&](int64_t plane, std::vector<int64_t>& winner) {
    if (may_collide) {
      winner.resize(p.out_plane());
    }
    int64_t* const won = may_collide ? winner.data() : nullptr;
    if (indices.positions) {
      gather_plane(p, plane, grad_output, indices.positions, grad_input, won, invalid);
    } else {
      gather_plane(p, plane, grad_output, indices.offsets, grad_input, won, invalid);
    }
  };
  if (!p.channels_last) {
    parallel_items(p.planes(), p.out_plane(), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> winner;
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t entry = plane * p.in_plane();
        const T* grad = grad_output + plane * p.out_plane();
        if (!tiled || !unpool_plane_2x2_backward(p, grad, indices + entry, grad_input + entry)) {
          gather(plane, winner);
        }
      }
    });
    return;
  }
  std::atomic<bool> all_own{tiled};
  if (tiled) {
    parallel_items(p.batch * p.in_h, 4 * p.in_w * p.channels, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end && all_own.load(std::memory_order_relaxed); ++item) {
        const int64_t n = item / p.in_h;
        const int64_t y = item - n * p.in_h;
        const T* row = grad_output + (n * p.out_plane() + 2 * y * p.out_w) * p.channels;
        const int64_t entry = (n * p.in_plane() + y * p.in_w) * p.channels;
        for (int64_t x = 0; x < p.in_w; ++x) {
          const T* first = row + 2 * x * p.channels;
          const T* second = first + p.out_w * p.channels;
          const T* const pixel[4] = {first, first + p.channels, second, second + p.channels};
          if (!unpool_pixel_2x2_backward(pixel, indices + entry + x * p.channels, p.channels, 2 * y * p.out_w + 2 * x,
                                         p.out_w, grad_input + entry + x * p.channels)) {
            all_own = false;
            return;
          }
        }
      }
    });
  }
  if (!all_own) {
    parallel_items(p.planes(), p.out_plane(), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> winner;
      for (int64_t plane = begin; plane < end; ++plane) {
        gather(plane, winner);
      }
    });
  }
}

IndexRun index_run(const Tensor& indices, const char* op) {
  IndexRun run(static_cast<const int64_t*>(nullptr));
  dispatch_index(indices.scalar_type(), op,
                 [&]<typename index_t>() { run = static_cast<const index_t*>(indices.const_data_ptr()); });
  return run;
}

void report(const FirstInvalid& invalid, const MaxUnpool2dParams& p, const Tensor& indices) {
  if (!invalid.found()) {
    return;
  }
  int64_t value = 0;
  dispatch_index(indices.scalar_type(), "max_unpool2d", [&]<typename index_t>() {
    value = static_cast<const index_t*>(indices.const_data_ptr())[invalid.entry()];
  });
  STD_TORCH_CHECK(false, "max_unpool2d: found an invalid max index in indices: ", value, " (output planes are of size ",
                  p.out_h, "x", p.out_w, ")");
}

Tensor max_unpool2d_cpu(const Tensor& input,    // [N, C, h, w]
                        const Tensor& indices,  // [N, C, h, w]
                        IntList output_size, IntList kernel_size, IntList stride, IntList padding) {
  check_dim(input, 4, "max_unpool2d", "input");
  check_same_shape(input, indices, "max_unpool2d", "input", "indices");
  const bool channels_last = is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor places = to_dense(indices, channels_last);
  const MaxUnpool2dParams p =
      max_unpool2d_params(input, output_size[0], output_size[1], kernel_size, stride, padding, channels_last);
  Tensor output =
      empty_nchw(p.batch, p.channels, p.out_h, p.out_w, input.scalar_type(), input, channels_last);  // [N, C, H, W]
  FirstInvalid invalid;
  dispatch_element(input, "max_unpool2d", [&]<typename T>() {
    unpool_all(p, static_cast<const T*>(values.const_data_ptr()), index_run(places, "max_unpool2d"),
               static_cast<T*>(output.mutable_data_ptr()), invalid);
  });
  report(invalid, p, places);
  return output;
}

Tensor max_unpool2d_backward_cpu(const Tensor& grad_output,  // [N, C, H, W]
                                 const Tensor& indices,      // [N, C, h, w]
                                 IntList kernel_size, IntList stride, IntList padding) {
  check_dim(grad_output, 4, "max_unpool2d_backward", "grad_output");
  check_dim(indices, 4, "max_unpool2d_backward", "indices");
  check_same_planes(grad_output, indices, "max_unpool2d_backward");
  const bool channels_last = is_channels_last(indices);
  const Tensor grad = to_dense(grad_output, channels_last);
  const Tensor places = to_dense(indices, channels_last);
  const MaxUnpool2dParams p =
      max_unpool2d_params(indices, grad.size(2), grad.size(3), kernel_size, stride, padding, channels_last);
  Tensor grad_input =
      empty_nchw(p.batch, p.channels, p.in_h, p.in_w, grad.scalar_type(), grad, channels_last);  // [N, C, h, w]
  FirstInvalid invalid;
  dispatch_element(grad, "max_unpool2d_backward", [&]<typename T>() {
    unpool_all_backward(p, static_cast<const T*>(grad.const_data_ptr()), index_run(places, "max_unpool2d_backward"),
                        static_cast<T*>(grad_input.mutable_data_ptr()), invalid);
  });
  report(invalid, p, places);
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("max_unpool2d", TORCH_BOX(&max_unpool2d_cpu));
  m.impl("max_unpool2d_backward", TORCH_BOX(&max_unpool2d_backward_cpu));
}

}  // namespace segkernels
