// Kernels of the Lovasz losses on the GPU; lovasz_loss.cu launches them.
//
// A segment is what is sorted together: one class of one loss, or for the hinge all pixels of one loss. Its Jaccard
// gradient at each rank follows from how many positive pixels came before, which is a scan of integers over chunks.
#pragma once

#include <cmath>

#include "../common/labels.cuh"
#include "../common/loss.cuh"
#include "../common/lovasz_check.h"

namespace segkernels {
namespace {

constexpr int kIgnoredLabel = -1, kWrongLabel = -2;
constexpr int kRankChunk = 16 * kThreads;  // ranks of a segment that a block works on

struct LovaszParams {
  Errors errors;
  int64_t batch, channels, pixels;
  int64_t groups;  // losses
  bool all_classes;

  __host__ __device__ bool hinge() const {
    return errors == Errors::kHinge;
  }
  // Segments of one loss, and their length.
  __host__ __device__ int64_t classes() const {
    return hinge() ? 1 : channels;
  }
  __host__ __device__ int64_t segments() const {
    return groups * classes();
  }
  __host__ __device__ int64_t length() const {
    return groups == 0 ? 0 : batch / groups * pixels * (hinge() ? channels : 1);
  }
  __host__ __device__ int64_t chunks() const {
    return (length() + kRankChunk - 1) / kRankChunk;
  }
};

template <typename T>
__device__ __forceinline__ T load_logit(const Logits& logits, int64_t i) {
  T value = 0;
  with_logit_type<T>(logits.dtype,
                     [&](auto type) { value = static_cast<T>(static_cast<const decltype(type)*>(logits.data)[i]); });
  return value;
}

template <typename T>
__device__ __forceinline__ void store_logit(const Logits& logits, int64_t i, T value) {
  with_logit_type<T>(logits.dtype, [&](auto type) {
    static_cast<decltype(type)*>(logits.data)[i] = static_cast<decltype(type)>(value);
  });
}

// Targets of any dtype as labels; wrong[g] is set where loss g has one that is no class.
__global__ void __launch_bounds__(kThreads) lovasz_labels_kernel(LovaszParams p, const void* target, ScalarType dtype,
                                                                 IgnoredTarget ignore, int* labels, int* wrong) {
  const int64_t most = p.hinge() ? 2 : p.channels;
  const int64_t total = p.groups * p.length();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    int label = kWrongLabel;
    with_type(dtype, [&](auto type) {
      using target_t = decltype(type);
      const target_t value = static_cast<const target_t*>(target)[i];
      const int64_t number = static_cast<int64_t>(static_cast<accumulate_t<target_t>>(value));
      bool whole = true;
      int64_t exact = number;
      if constexpr (std::is_integral_v<target_t>) {
        exact = static_cast<int64_t>(value);
      } else {
        whole = static_cast<accumulate_t<target_t>>(number) == static_cast<accumulate_t<target_t>>(value);
      }
      if (whole && ignore.any && exact == ignore.label) {
        label = kIgnoredLabel;
      } else if (whole && exact >= 0 && exact < most) {
        label = static_cast<int>(exact);
      }
    });
    labels[i] = label;
    if (label == kWrongLabel) {
      atomicMax(wrong + i / p.length(), 1);
    }
  }
}

// Errors of 0 and less have no part in a loss and come last.
template <typename T>
__device__ __forceinline__ T sorted_error(T error, int label) {
  return label == kIgnoredLabel || error <= T(0) ? T(-1) : error;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lovasz_hinge_kernel(int64_t total, Logits input, const int* labels, T* errors) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const T sign = labels[i] == 1 ? T(1) : T(-1);
    errors[i] = sorted_error(1 - load_logit<T>(input, i) * sign, labels[i]);
  }
}

// Where the classes of a pixel lie in a dense tensor of either layout.
struct PixelPlace {
  int64_t n, pixel, start, step;

  __device__ PixelPlace(const LovaszParams& p, int64_t i, bool channels_last) {
    n = i / p.pixels;
    pixel = i - n * p.pixels;
    start = channels_last ? i * p.channels : n * p.channels * p.pixels + pixel;
    step = channels_last ? 1 : p.pixels;
  }
};

// Largest logit, and one over the sum of exp(x - max).
template <typename T>
struct Normalizer {
  T max = 0, scale = 1;

  __device__ Normalizer(const LovaszParams& p, const Logits& input, const PixelPlace& place) {
    if (p.errors == Errors::kProbabilities) {
      return;
    }
    max = -INFINITY;
    for (int64_t c = 0; c < p.channels; ++c) {
      const T x = load_logit<T>(input, place.start + c * place.step);
      max = x > max ? x : max;
    }
    T sum = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      sum += exp(load_logit<T>(input, place.start + c * place.step) - max);
    }
    scale = 1 / sum;
  }
  __device__ __forceinline__ T probability(const LovaszParams& p, T x) const {
    return p.errors == Errors::kProbabilities ? x : exp(x - max) * scale;
  }
};

// A pixel a thread: |t - p| of every class, to the class's segment.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    lovasz_softmax_kernel(LovaszParams p, Logits input, bool channels_last, const int* labels,
                          T* errors) {  // [groups, C, length]
  const int64_t length = p.length();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.batch * p.pixels;
       i += int64_t{gridDim.x} * kThreads) {
    const PixelPlace place(p, i, channels_last);
    const Normalizer<T> normalizer(p, input, place);
    const int64_t group = i / length;
    T* const to = errors + group * p.channels * length + (i - group * length);
    const int label = labels[i];
    for (int64_t c = 0; c < p.channels; ++c) {
      const T probability = normalizer.probability(p, load_logit<T>(input, place.start + c * place.step));
      to[c * length] = sorted_error(label == c ? 1 - probability : probability, label);
    }
  }
}

// Ranks [begin, end) of a segment.
struct RankChunk {
  int64_t segment, group, begin, end;
  int positive;  // the label that is positive

  __device__ RankChunk(const LovaszParams& p, int64_t item) {
    segment = item / p.chunks();
    group = segment / p.classes();
    positive = p.hinge() ? 1 : static_cast<int>(segment - group * p.channels);
    begin = (item - segment * p.chunks()) * kRankChunk;
    end = min(begin + kRankChunk, p.length());
  }
};

// Positive pixels of every chunk.
__global__ void __launch_bounds__(kThreads) lovasz_count_kernel(LovaszParams p, const int* labels, const int64_t* order,
                                                                double* counts) {  // [segments, chunks]
  for (int64_t item = blockIdx.x; item < p.segments() * p.chunks(); item += gridDim.x) {
    const RankChunk chunk(p, item);
    double count[1] = {};
    for (int64_t rank = chunk.begin + threadIdx.x; rank < chunk.end; rank += kThreads) {
      count[0] += labels[chunk.group * p.length() + order[chunk.segment * p.length() + rank]] == chunk.positive;
    }
    block_sums(count);
    store_sums(count, counts + item);
  }
}

// A block per segment: counts become how many came before; their total.
__global__ void __launch_bounds__(kThreads) lovasz_before_kernel(LovaszParams p, double* counts, double* totals) {
  __shared__ double sums[kThreads];
  const int64_t each = (p.chunks() + kThreads - 1) / kThreads;
  for (int64_t segment = blockIdx.x; segment < p.segments(); segment += gridDim.x) {
    double* const own = counts + segment * p.chunks();
    const int64_t begin = min(threadIdx.x * each, p.chunks()), end = min(begin + each, p.chunks());
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      sum += own[i];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    double before = 0;
    for (int thread = 0; thread < static_cast<int>(threadIdx.x); ++thread) {
      before += sums[thread];
    }
    for (int64_t i = begin; i < end; ++i) {
      const double count = own[i];
      own[i] = before;
      before += count;
    }
    if (threadIdx.x == kThreads - 1) {
      totals[segment] = before;
    }
    __syncthreads();
  }
}

// A block per loss: the weight of each class in it, NaN with a wrong label.
__global__ void __launch_bounds__(kThreads)
    lovasz_scales_kernel(LovaszParams p, const double* totals, const int* wrong, double* scales) {  // [segments]
  for (int64_t group = blockIdx.x; group < p.groups; group += gridDim.x) {
    const double* const own = totals + group * p.classes();
    double present[1] = {};
    for (int64_t c = threadIdx.x; c < p.classes(); c += kThreads) {
      present[0] += own[c] > 0;
    }
    block_sums(present);
    const double count = p.all_classes && present[0] > 0 ? static_cast<double>(p.classes()) : present[0];
    for (int64_t c = threadIdx.x; c < p.classes(); c += kThreads) {
      const bool counts = own[c] > 0 || (p.all_classes && count > 0);
      const double scale = p.hinge() ? 1.0 : counts ? 1 / count : 0.0;
      scales[group * p.classes() + c] = wrong[group] != 0 ? static_cast<double>(NAN) : scale;
    }
  }
}

// The Jaccard gradient at every rank goes to its pixel, with the sign of the error's slope.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    lovasz_slopes_kernel(LovaszParams p, const int* labels, const T* errors, const int64_t* order, const double* before,
                         const double* totals, const double* scales,
                         double* losses,  // [segments, chunks]
                         T* slopes) {     // [N, C, H, W]
  __shared__ int warps[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t item = blockIdx.x; item < p.segments() * p.chunks(); item += gridDim.x) {
    const RankChunk chunk(p, item);
    const double positives = totals[chunk.segment], scale = scales[chunk.segment];
    double seen = before[item];
    double loss[1] = {};
    for (int64_t start = chunk.begin; start < chunk.end; start += kThreads) {
      const int64_t rank = start + threadIdx.x;
      const bool inside = rank < chunk.end;
      const int64_t at = chunk.segment * p.length() + rank;
      const int64_t place = inside ? order[at] : 0;
      const bool positive = inside && labels[chunk.group * p.length() + place] == chunk.positive;
      const unsigned int votes = __ballot_sync(0xffffffffu, positive);
      if (lane == 0) {
        warps[warp] = __popc(votes);
      }
      __syncthreads();
      double earlier = seen + __popc(votes & ((1u << lane) - 1));
      for (int w = 0; w < kWarps; ++w) {
        earlier += w < warp ? warps[w] : 0;
        seen += warps[w];
      }
      if (inside) {
        const T error = errors[at];
        T slope = 0;
        if (!(error <= T(0)) && scale != 0) {
          // How much 1 - intersection / union grows with this pixel; the first one decides where the class is absent.
          const double whole = positives + static_cast<double>(rank) - earlier;
          const double above = positive ? whole + 1 : positives - earlier;
          const double step = (whole == 0 ? 1.0 : above / (whole * (whole + 1))) * scale;
          loss[0] += static_cast<double>(error) * step;
          slope = static_cast<T>(positive ? -step : step);
        }
        if (p.hinge()) {
          slopes[chunk.group * p.length() + place] = slope;
        } else {
          const unsigned int pixels = static_cast<unsigned int>(p.pixels);
          const unsigned int n = static_cast<unsigned int>(place) / pixels;
          const int64_t plane = (chunk.group * (p.length() / p.pixels) + n) * p.channels + chunk.positive;
          slopes[plane * p.pixels + (static_cast<unsigned int>(place) - n * pixels)] = slope;
        }
      }
      __syncthreads();
    }
    block_sums(loss);
    store_sums(loss, losses + item);
  }
}

// A block per loss: the sum over its classes.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    lovasz_finish_kernel(LovaszParams p, const double* class_losses, const double* scales, T* loss) {  // [groups]
  for (int64_t group = blockIdx.x; group < p.groups; group += gridDim.x) {
    double total[1] = {};
    for (int64_t c = threadIdx.x; c < p.classes(); c += kThreads) {
      const int64_t segment = group * p.classes() + c;
      total[0] += class_losses[segment] + (isnan(scales[segment]) ? scales[segment] : 0.0);
    }
    block_sums(total);
    if (threadIdx.x == 0) {
      loss[group] = static_cast<T>(total[0]);
    }
  }
}

// A pixel a thread: slopes, through the softmax.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) lovasz_bwd_kernel(LovaszParams p, const T* grad_output,  // [groups]
                                                                 Logits input, bool channels_last,
                                                                 const T* slopes,  // [N, C, H, W]
                                                                 Logits output) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.batch * p.pixels;
       i += int64_t{gridDim.x} * kThreads) {
    const PixelPlace place(p, i, channels_last);
    const T* const own = slopes + place.n * p.channels * p.pixels + place.pixel;
    const T upstream = grad_output[p.groups == 1 ? 0 : place.n];
    if (p.errors != Errors::kSoftmax) {
      for (int64_t c = 0; c < p.channels; ++c) {
        store_logit(output, place.start + c * place.step, own[c * p.pixels] * upstream);
      }
      continue;
    }
    const Normalizer<T> normalizer(p, input, place);
    T dot = 0;
    bool used = false;
    for (int64_t c = 0; c < p.channels; ++c) {
      const T slope = own[c * p.pixels];
      dot += normalizer.probability(p, load_logit<T>(input, place.start + c * place.step)) * slope;
      used |= slope != T(0);
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t at = place.start + c * place.step;
      const T probability = normalizer.probability(p, load_logit<T>(input, at));
      // Without a slope there is no gradient, whatever an ignored pixel holds.
      store_logit(output, at, used ? probability * (upstream * (own[c * p.pixels] - dot)) : T(0));
    }
  }
}

}  // namespace
}  // namespace segkernels
