// Greedy non-maximum suppression on the GPU, for nms and batched_nms: boxes sorted by class, then by score, so that a
// class is a segment, and in each segment kNmsChunk boxes at a time:
//   1. which later boxes of the chunk each box excludes, as bits, by as many threads as there are words of 64 boxes;
//   2. who survives: a block walks through a segment's chunk in tiles of 64, whose outcome it tells the later ones;
//   3. the survivors exclude boxes of later chunks, a warp a box.
// Memory is 512 bytes a box whatever their number, and no step waits for the host: the number of chunks follows from
// that of the boxes, and a chunk that no segment reaches costs three empty launches. About 1 us a tile of 64 boxes of
// the largest segment should remain, the latency of step 2.
#pragma once

#include <tuple>

#include "../common/aten.h"
#include "../common/cuda.cuh"
#include "../common/nms.h"

namespace segkernels {

constexpr int kNmsTile = 64;  // boxes a word
constexpr int kNmsChunk = 4096;
constexpr int kNmsWords = kNmsChunk / kNmsTile;
constexpr int kNmsBlocksPerMultiprocessor = 16;  // loops take the rest: an empty chunk costs next to nothing

struct Range {
  int begin, end;
};

template <typename T>
struct __align__(16) Corners {
  T values[4];
};

// Where a step's boxes, segments and results lie; positions are those of the sorted boxes.
template <typename T>
struct Suppression {
  int count;
  T threshold;
  Corners<T>* boxes;         // [N]
  Range* segments;           // [N], the one that each box belongs to
  int* longest;              // [1], boxes of the largest segment
  unsigned char* excluded;   // [N], by boxes of earlier chunks
  unsigned long long* mask;  // [N, kNmsWords], later boxes of its chunk that a box excludes
  int* survivors;            // [N], from a segment's first place on
  Range* chunk_survivors;    // [N], at a segment's first place: those of its last chunk
  const int64_t* ranks;      // [N], positions by decreasing score; nullptr: in that order already
  bool* kept;                // [N], by decreasing score

  __device__ Box<T> box(int position) const {
    const Corners<T> corners = boxes[position];
    return Box<T>(corners.values);
  }
  __device__ void set_kept(int position, bool value) const {
    kept[ranks == nullptr ? position : ranks[position]] = value;
  }
};

namespace {

// The first of sorted values that is not less than (kUpper: greater than) the given one.
template <bool kUpper>
__device__ int bound(const int64_t* values, int count, int64_t value) {
  int low = 0;
  while (count > 0) {
    const int half = count / 2;
    const int64_t middle = values[low + half];
    const bool after = kUpper ? middle <= value : middle < value;
    low = after ? low + half + 1 : low;
    count = after ? count - half - 1 : half;
  }
  return low;
}

template <typename T>
__global__ void nms_gather_kernel(Suppression<T> s, const T* boxes,  // [N, 4]
                                  const int64_t* order,              // [N], by decreasing score
                                  const int64_t* classes) {          // [N], sorted; nullptr: one class
  for (int p = blockIdx.x * blockDim.x + threadIdx.x; p < s.count; p += gridDim.x * blockDim.x) {
    const T* const from = boxes + 4 * order[s.ranks == nullptr ? p : s.ranks[p]];
    s.boxes[p] = {{from[0], from[1], from[2], from[3]}};
    Range segment{0, s.count};
    if (classes != nullptr) {
      segment = {bound<false>(classes, s.count, classes[p]), bound<true>(classes, s.count, classes[p])};
    }
    s.segments[p] = segment;
    s.excluded[p] = 0;
    if (segment.begin == p) {
      atomicMax(s.longest, segment.end - p);
    }
  }
}

template <typename T>
__global__ void nms_mask_kernel(Suppression<T> s, int chunk) {
  if (chunk >= *s.longest) {
    return;
  }
  const int64_t items = (static_cast<int64_t>(s.count) + kNmsTile - 1) / kNmsTile * kNmsWords;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kNmsTile;
  for (int64_t item = first; item < items; item += gridDim.x * blockDim.x / kNmsTile) {
    const int position = static_cast<int>(item / kNmsWords) * kNmsTile + threadIdx.x % kNmsTile;
    const int word = static_cast<int>(item % kNmsWords);
    if (position >= s.count) {
      continue;
    }
    const Range segment = s.segments[position];
    const int own = position - segment.begin - chunk;  // in the chunk
    const int begin = segment.begin + chunk + word * kNmsTile;
    if (own < 0 || own >= kNmsChunk || word < own / kNmsTile || begin >= segment.end || s.excluded[position]) {
      continue;
    }
    // Neighbouring threads are neighbours of one segment but at its ends, and read the same box.
    const Box<T> box = s.box(position);
    const int last = min(kNmsTile, segment.end - begin);
    unsigned long long bits = 0;
    for (int i = 0; i < last; ++i) {
      if (begin + i > position && intersection_over_union(s.box(begin + i), box) > s.threshold) {
        bits |= 1ull << i;
      }
    }
    s.mask[static_cast<int64_t>(position) * kNmsWords + word] = bits;
  }
}

struct ChunkState {
  unsigned long long excluded[kNmsWords];
  unsigned long long diagonal[2][kNmsTile];  // of this tile's boxes and the next one's, what they exclude in their tile
  unsigned long long kept;
};

// All threads of the block; one segment's chunk.
template <typename T>
__device__ void reduce_chunk(const Suppression<T>& s, Range segment, int chunk, ChunkState& state) {
  const int first = segment.begin + chunk;
  const int size = min(kNmsChunk, segment.end - first);
  const int tiles = (size + kNmsTile - 1) / kNmsTile;
  const int thread = threadIdx.x;
  const auto mask_word = [&](int i, int word) { return s.mask[static_cast<int64_t>(first + i) * kNmsWords + word]; };
  for (int i = thread; i < tiles * kNmsTile; i += kThreads) {
    const unsigned int votes = __ballot_sync(0xffffffffu, i >= size || s.excluded[first + i]);
    if (thread % 32 == 0) {
      reinterpret_cast<unsigned int*>(state.excluded)[i / 32] = votes;
    }
  }
  if (thread < kNmsTile && thread < size) {
    state.diagonal[0][thread] = mask_word(thread, 0);
  }
  int survivors = chunk == 0 ? 0 : s.chunk_survivors[segment.begin].end;
  [[maybe_unused]] const int survivors_before = survivors;
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    if (thread == 0) {
      unsigned long long open = ~state.excluded[tile], kept = 0;
      while (open != 0) {
        const int i = __ffsll(open) - 1;
        kept |= 1ull << i;
        open &= ~(state.diagonal[tile % 2][i] | 1ull << i);
      }
      state.kept = kept;
    }
    __syncthreads();
    const unsigned long long kept = state.kept;
    const int own = tile * kNmsTile + thread;
    if (thread < kNmsTile && own < size) {
      const bool stays = kept >> thread & 1;
      s.set_kept(first + own, stays);
      if (stays) {
        s.survivors[segment.begin + survivors + __popcll(kept & ((1ull << thread) - 1))] = first + own;
      }
    }
    survivors += __popcll(kept);
    if (thread < kNmsTile && own + kNmsTile < size) {
      state.diagonal[(tile + 1) % 2][thread] = mask_word(own + kNmsTile, tile + 1);
    }
    constexpr int kShares = kThreads / kNmsWords;
    const int word = tile + 1 + thread % kNmsWords;
    if (word < tiles) {
      unsigned long long bits = 0;
#pragma unroll
      for (int i = 0; i < kNmsTile / kShares; ++i) {
        const int row = i * kShares + thread / kNmsWords;
        bits |= kept >> row & 1 ? mask_word(tile * kNmsTile + row, word) : 0;
      }
      atomicOr(&state.excluded[word], bits);
    }
    __syncthreads();
  }
  if (thread == 0) {
    s.chunk_survivors[segment.begin] = {survivors_before, survivors};
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) nms_reduce_kernel(Suppression<T> s, int chunk) {
  __shared__ ChunkState state;
  if (chunk >= *s.longest) {
    return;
  }
  // A block takes the segments that begin in its tiles.
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kNmsTile; tile < s.count; tile += gridDim.x * kNmsTile) {
    const int begin = static_cast<int>(tile);
    const int end = static_cast<int>(min(tile + kNmsTile, static_cast<int64_t>(s.count)));
    Range segment = s.segments[begin];
    if (segment.begin < begin) {
      segment.begin = segment.end;
    }
    while (segment.begin < end) {
      segment.end = s.segments[segment.begin].end;
      if (segment.end - segment.begin > 1) {
        if (segment.end - segment.begin > chunk) {
          reduce_chunk(s, segment, chunk, state);
        }
      } else if (threadIdx.x == 0 && chunk == 0) {
        s.set_kept(segment.begin, true);
      }
      segment.begin = segment.end;
    }
  }
}

// The survivors of the chunk before `chunk` on boxes from there on.
template <typename T>
__global__ void nms_exclude_kernel(Suppression<T> s, int chunk) {
  if (chunk >= *s.longest) {
    return;
  }
  const int lane = threadIdx.x % 32;
  const int warps = gridDim.x * (blockDim.x / 32);
  for (int p = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; p < s.count; p += warps) {
    const Range segment = s.segments[p];
    if (p - segment.begin < chunk || s.excluded[p]) {
      continue;
    }
    const Box<T> box = s.box(p);
    const Range range = s.chunk_survivors[segment.begin];
    bool hit = false;
    for (int k = range.begin; k < range.end && !hit; k += 32) {
      const int place = segment.begin + min(k + lane, range.end - 1);
      hit = __any_sync(0xffffffffu, intersection_over_union(box, s.box(s.survivors[place])) > s.threshold);
    }
    if (hit && lane == 0) {
      s.excluded[p] = 1;
    }
  }
}

// Positions by decreasing score, int64 [N], and which of them survive, bool [N]; `idxs` is nullptr for one class.
std::tuple<Tensor, Tensor> suppress(const Tensor& boxes,   // [N, 4]
                                    const Tensor& scores,  // [N]
                                    const Tensor* idxs,    // [N]
                                    double iou_threshold, const char* op) {
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(count <= INT32_MAX / 2, op, ": expected at most 2^30 boxes, got ", count);
  const DeviceScope scope(boxes);
  const auto vector = [&](ScalarType dtype, int64_t size) { return empty({size}, dtype, boxes); };
  const Tensor order = std::get<1>(stable_sort(scores, true));
  Tensor kept = vector(ScalarType::Bool, count);
  if (count == 0) {
    return {order, kept};
  }
  Tensor classes = order, ranks = order;
  if (idxs != nullptr) {
    std::tie(classes, ranks) = stable_sort(index_select(*idxs, order), false);
  }
  const ScalarType dtype = coordinate_type(boxes);
  const Tensor corners = to_coordinates(boxes, dtype);
  const Tensor sorted = vector(dtype, 4 * count), segments = vector(ScalarType::Int, 2 * count);
  const Tensor excluded = vector(ScalarType::Byte, count), mask = vector(ScalarType::Long, count * kNmsWords);
  const Tensor survivors = vector(ScalarType::Int, count), chunk_survivors = vector(ScalarType::Int, 2 * count);
  Tensor longest = vector(ScalarType::Int, 1);
  torch::stable::zero_(longest);
  dispatch_compute(dtype, [&]<typename T>() {
    const Suppression<T> s{static_cast<int>(count),
                           threshold_below<T>(iou_threshold),
                           static_cast<Corners<T>*>(sorted.mutable_data_ptr()),
                           static_cast<Range*>(segments.mutable_data_ptr()),
                           static_cast<int*>(longest.mutable_data_ptr()),
                           static_cast<unsigned char*>(excluded.mutable_data_ptr()),
                           static_cast<unsigned long long*>(mask.mutable_data_ptr()),
                           static_cast<int*>(survivors.mutable_data_ptr()),
                           static_cast<Range*>(chunk_survivors.mutable_data_ptr()),
                           idxs == nullptr ? nullptr : static_cast<const int64_t*>(ranks.const_data_ptr()),
                           static_cast<bool*>(kept.mutable_data_ptr())};
    const unsigned int limit = scope.multiprocessors() * kNmsBlocksPerMultiprocessor;
    const auto start = [&](auto kernel, int64_t threads, auto... rest) {
      launch(kernel, std::min(limit, blocks_for(threads)), kThreads, 0, scope.stream(), s, rest...);
    };
    start(nms_gather_kernel<T>, count, static_cast<const T*>(corners.const_data_ptr()),
          static_cast<const int64_t*>(order.const_data_ptr()),
          idxs == nullptr ? nullptr : static_cast<const int64_t*>(classes.const_data_ptr()));
    for (int64_t chunk = 0; chunk < count; chunk += kNmsChunk) {
      if (chunk > 0) {
        start(nms_exclude_kernel<T>, 32 * count, static_cast<int>(chunk));
      }
      start(nms_mask_kernel<T>, count * kNmsWords, static_cast<int>(chunk));
      start(nms_reduce_kernel<T>, (count + kNmsTile - 1) / kNmsTile * kThreads, static_cast<int>(chunk));
    }
  });
  return {order, kept};
}

}  // namespace
}  // namespace segkernels
