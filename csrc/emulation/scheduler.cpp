#include "scheduler.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sstream>
#include <thread>
#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace segkernels::emulation {

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
  unsigned int group;
};

enum class State { ready, barrier, collective, active_mask, done };

// One thread of the block that runs.
struct Thread {
  uint3 index = {};
  unsigned int number = 0;  // linear in the block
  Fiber* fiber = nullptr;   // null until it starts
  State state = State::ready;
  // What it waits for.
  const char* name = "";
  Site site = {};
  uint32_t mask = 0;
  void* slot = nullptr;
  Resolve resolve = nullptr;
  // cp.async
  std::vector<Copy> copies;
  unsigned int groups = 0;  // committed so far
};

namespace {

constexpr unsigned char kPoison = 0xFF;  // NaN in every floating type, -1 in every integer
constexpr size_t kCanaryBytes = 64;
constexpr uint64_t kSpinning = uint64_t{1} << 26;  // atomics without progress elsewhere in the block

std::string describe(const uint3& i) {
  std::ostringstream text;
  text << '(' << i.x << ", " << i.y << ", " << i.z << ')';
  return text.str();
}

std::string describe(const Site& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// The library's thread-local segment: in a build without sanitizers it holds the kernels' __shared__ variables and
// nothing else (see cuda_runtime.h).
struct Segment {
  char* begin = nullptr;
  size_t bytes = 0;
};

#if !defined(__SANITIZE_ADDRESS__)
thread_local char thread_segment_anchor;  // makes the loader allocate the segment of this thread

Segment static_shared_memory() {
  static std::thread::id owner;
  static Segment segment;
  if (owner == std::this_thread::get_id()) {
    return segment;
  }
  owner = std::this_thread::get_id();
  char* volatile anchor = &thread_segment_anchor;
  segment = {anchor, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        Segment& found = *static_cast<Segment*>(out);
        char* begin = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; i < info->dlpi_phnum && begin != nullptr; ++i) {
          const size_t bytes = info->dlpi_phdr[i].p_memsz;
          if (info->dlpi_phdr[i].p_type == PT_TLS && found.begin >= begin && found.begin < begin + bytes) {
            found = {begin, bytes};
            return 1;
          }
        }
        return 0;
      },
      &segment);
  return segment;
}
#else
Segment static_shared_memory() {
  return {};
}
#endif

class Grid {
 public:
  std::string run(dim3 grid, dim3 block, size_t shared_bytes, void (*entry)(void*), void* context);

  [[noreturn]] void fail(const std::string& message);
  void wait(State state, const char* name, Site where);
  int barrier(Barrier kind, bool predicate, Site where);
  void collective(const char* name, uint32_t mask, void* slot, Resolve resolve, Site where);
  void interleave(Site where);

  Thread& thread() {
    return *current_->thread;
  }
  void* shared() {
    return shared_;
  }
  uint64_t random();

 private:
  static void fiber_main();
  void run_block();
  void check_canary();
  void make_ready(Thread& thread);
  Thread* next_thread();
  bool release_active_masks();
  bool complete_collective(Thread& arrived);
  void retire(Thread& thread);
  void report_deadlock();
  Fiber& fiber_for(Thread& thread);
  void go(Fiber& next);
  void use_builtins();

  void (*entry_)(void*) = nullptr;
  void* context_ = nullptr;
  uint64_t seed_ = 0, random_ = 0;
  std::string error_;

  std::vector<Thread> threads_;
  std::vector<uint32_t> ready_;  // from ready_head_ on
  size_t ready_head_ = 0;
  size_t done_ = 0;

  std::deque<Fiber> fibers_;
  std::vector<Fiber*> free_fibers_;
  Fiber outside_;
  Fiber* current_ = &outside_;

  size_t waiting_at_barrier_ = 0;
  size_t predicates_ = 0;
  Barrier barrier_kind_ = Barrier::sync;
  Site barrier_site_ = {};
  int barrier_result_ = 0;
  uint64_t atomics_ = 0;  // since a thread of the block last returned or passed a barrier

  char* shared_ = nullptr;
  size_t shared_bytes_ = 0;
};

Grid* running = nullptr;

uint64_t environment_seed() {
  const char* text = std::getenv("SEGKERNELS_EMULATION_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
}

// splitmix64
uint64_t Grid::random() {
  uint64_t z = (random_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::string Grid::run(dim3 grid, dim3 block, size_t shared_bytes, void (*entry)(void*), void* context) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) {
    return "invalid configuration: a block of " + describe({block.x, block.y, block.z}) + " threads";
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    return "invalid configuration: a grid of " + describe({grid.x, grid.y, grid.z}) + " blocks";
  }
  if (shared_bytes > kMaxSharedBytes) {
    return "invalid configuration: " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, at most " +
           std::to_string(kMaxSharedBytes);
  }
  entry_ = entry;
  context_ = context;
  random_ = seed_ = environment_seed();
  error_.clear();
  gridDim = grid;
  blockDim = block;
  threads_.resize(threads);
  for (unsigned int i = 0; i < threads; ++i) {
    threads_[i].number = i;
    threads_[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }
  // Exactly as long as asked for under AddressSanitizer; otherwise a canary stands behind it.
  shared_bytes_ = shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
  const size_t allocated = std::max<size_t>(1, shared_bytes);
#else
  const size_t allocated = shared_bytes + kCanaryBytes;
#endif
  shared_ = static_cast<char*>(::operator new(allocated, std::align_val_t(128)));
  const Segment statics = static_shared_memory();
  if (statics.bytes > 0) {
    std::memset(statics.begin, kPoison, statics.bytes);
  }
  // An affine map with a multiplier coprime to the number of blocks is an order of them that needs no memory.
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t step = 1, offset = 0;
  if (seed_ != 0) {
    offset = random() % blocks;
    do {
      step = 1 + random() % blocks;
    } while (std::gcd(step, blocks) != 1);
  }
  for (uint64_t i = 0; i < blocks && error_.empty(); ++i) {
    const uint64_t b = static_cast<uint64_t>((static_cast<unsigned __int128>(step) * i + offset) % blocks);
    blockIdx = {static_cast<unsigned int>(b % grid.x), static_cast<unsigned int>(b / grid.x % grid.y),
                static_cast<unsigned int>(b / grid.x / grid.y)};
    // Refilling the statics of all kernels before every block is worth it only while they are few; the seeded order of
    // blocks shows what one block leaves to the next.
    if (i > 0 && statics.bytes > 0 && statics.bytes <= (size_t{64} << 10)) {
      std::memset(statics.begin, kPoison, statics.bytes);
    }
    std::memset(shared_, kPoison, allocated);
    run_block();
    check_canary();
  }
  ::operator delete(shared_, std::align_val_t(128));
  return error_;
}

void Grid::check_canary() {
#if !defined(__SANITIZE_ADDRESS__)
  const char* canary = shared_ + shared_bytes_;
  for (size_t i = 0; i < kCanaryBytes && error_.empty(); ++i) {
    if (static_cast<unsigned char>(canary[i]) != kPoison) {
      error_ = "write past the end of " + std::to_string(shared_bytes_) +
               " bytes of dynamic shared memory, at offset " + std::to_string(shared_bytes_ + i) + ", in block " +
               describe(blockIdx);
    }
  }
#endif
}

void Grid::run_block() {
  ready_.clear();
  ready_head_ = 0;
  done_ = 0;
  waiting_at_barrier_ = 0;
  atomics_ = 0;
  for (Thread& thread : threads_) {
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.groups = 0;
    make_ready(thread);
  }
  go(fiber_for(*next_thread()));
  if (!error_.empty()) {
    // Fibers stopped in the middle of a kernel: their frames are dropped.
    free_fibers_.clear();
    for (Fiber& fiber : fibers_) {
      fiber.reset();
      free_fibers_.push_back(&fiber);
    }
  }
}

void Grid::make_ready(Thread& thread) {
  thread.state = State::ready;
  ready_.push_back(thread.number);
}

// The next thread to run, or null when none can.
Thread* Grid::next_thread() {
  if (ready_head_ == ready_.size()) {
    ready_.clear();
    ready_head_ = 0;
    if (done_ == threads_.size() || !release_active_masks()) {
      return nullptr;
    }
  }
  if (seed_ != 0) {
    std::swap(ready_[ready_head_], ready_[ready_head_ + random() % (ready_.size() - ready_head_)]);
  }
  return &threads_[ready_[ready_head_++]];
}

Fiber& Grid::fiber_for(Thread& thread) {
  if (thread.fiber == nullptr) {
    if (free_fibers_.empty()) {
      free_fibers_.push_back(&fibers_.emplace_back(&Grid::fiber_main));
    }
    thread.fiber = free_fibers_.back();
    thread.fiber->thread = &thread;
    free_fibers_.pop_back();
  }
  return *thread.fiber;
}

void Grid::go(Fiber& next) {
  Fiber* self = current_;
  if (&next == self) {
    return;
  }
  current_ = &next;
  if (next.thread != nullptr) {
    use_builtins();
  }
  self->switch_to(next);
}

void Grid::use_builtins() {
  threadIdx = thread().index;
}

// A fiber runs threads one after the other: where nobody waits, one stack serves the whole grid.
void Grid::fiber_main() {
  Fiber::entered();
  Grid& grid = *running;
  for (;;) {
    try {
      grid.entry_(grid.context_);
    } catch (const std::exception& error) {
      grid.error_ = std::string("exception in a kernel: ") + error.what();
    } catch (...) {
      grid.error_ = "exception in a kernel";
    }
    Fiber* self = grid.current_;
    if (grid.error_.empty()) {
      grid.retire(*self->thread);
    }
    Thread* next = grid.error_.empty() ? grid.next_thread() : nullptr;
    if (next != nullptr && next->fiber == nullptr) {
      next->fiber = self;
      self->thread = next;
      grid.use_builtins();
      continue;
    }
    grid.free_fibers_.push_back(self);
    if (next == nullptr && grid.error_.empty() && grid.done_ < grid.threads_.size()) {
      grid.report_deadlock();
    }
    grid.go(next != nullptr ? *next->fiber : grid.outside_);
  }
}

void Grid::retire(Thread& thread) {
  thread.state = State::done;
  ++done_;
  atomics_ = 0;
  // Lanes that wait for this one have waited for the last: a thread that has returned is not waited for.
  const unsigned int first = thread.number / kWarpSize * kWarpSize;
  const unsigned int last = std::min<unsigned int>(first + kWarpSize, threads_.size());
  for (unsigned int i = first; i < last; ++i) {
    if (threads_[i].state == State::collective && complete_collective(threads_[i])) {
      break;
    }
  }
}

void Grid::fail(const std::string& message) {
  if (error_.empty()) {
    error_ = message + ", thread " + describe(threadIdx) + " of block " + describe(blockIdx);
  }
  go(outside_);
  __builtin_unreachable();
}

// Blocks the current thread until somebody makes it ready.
void Grid::wait(State state, const char* name, Site where) {
  Thread& self = thread();
  self.state = state;
  self.name = name;
  self.site = where;
  Thread* next = next_thread();
  if (next == nullptr) {
    report_deadlock();
    go(outside_);
  } else {
    go(fiber_for(*next));
  }
}

void Grid::interleave(Site where) {
  if (++atomics_ > kSpinning) {
    fail("deadlock: a thread spins on an atomic at " + describe(where));
  }
  if (atomics_ % 1024 == 0 || (seed_ != 0 && random() % 8 == 0)) {
    Thread& self = thread();
    make_ready(self);
    go(fiber_for(*next_thread()));
  }
}

int Grid::barrier(Barrier kind, bool predicate, Site where) {
  if (waiting_at_barrier_ == 0) {
    predicates_ = 0;
    barrier_kind_ = kind;
    barrier_site_ = where;
  } else if (kind != barrier_kind_ || !same_place(where, barrier_site_)) {
    fail("__syncthreads() in divergent code: threads wait at " + describe(barrier_site_) + " and at " +
         describe(where));
  }
  predicates_ += predicate;
  if (++waiting_at_barrier_ < threads_.size()) {
    wait(State::barrier, "__syncthreads()", where);
    return barrier_result_;
  }
  const int count = static_cast<int>(predicates_);
  barrier_result_ = kind == Barrier::all   ? static_cast<size_t>(count) == threads_.size()
                    : kind == Barrier::any ? count != 0
                                           : count;
  waiting_at_barrier_ = 0;
  atomics_ = 0;
  for (Thread& thread : threads_) {
    if (thread.state == State::barrier) {
      make_ready(thread);
    }
  }
  // Under a seed the last to arrive is not the first to go on.
  const int result = barrier_result_;
  if (seed_ != 0 && threads_.size() > 1) {
    make_ready(thread());
    go(fiber_for(*next_thread()));
  }
  return result;
}

void Grid::collective(const char* name, uint32_t mask, void* slot, Resolve resolve, Site where) {
  Thread& self = thread();
  const uint32_t lane = self.number % kWarpSize;
  if ((mask >> lane & 1) == 0) {
    std::ostringstream text;
    text << name << " at " << describe(where) << ": mask 0x" << std::hex << mask << std::dec
         << " does not name the calling lane " << lane;
    fail(text.str());
  }
  self.mask = mask;
  self.slot = slot;
  self.resolve = resolve;
  self.name = name;
  self.site = where;
  self.state = State::collective;
  if (!complete_collective(self)) {
    wait(State::collective, name, where);
  } else {
    // It was made ready with the others.
    go(fiber_for(*next_thread()));
  }
}

// Releases the lanes of `arrived`'s collective if all of them are there.
bool Grid::complete_collective(Thread& arrived) {
  const unsigned int first = arrived.number / kWarpSize * kWarpSize;
  const unsigned int count = std::min<unsigned int>(kWarpSize, threads_.size() - first);
  void* slots[kWarpSize] = {};
  uint32_t lanes = 0;
  bool complete = true;
  for (unsigned int lane = 0; lane < count; ++lane) {
    Thread& other = threads_[first + lane];
    if ((arrived.mask >> lane & 1) == 0 || other.state == State::done) {
      continue;
    }
    if (other.state != State::collective) {
      complete = false;
      continue;
    }
    if (other.mask != arrived.mask || std::strcmp(other.name, arrived.name) != 0) {
      if ((other.mask >> (arrived.number % kWarpSize) & 1) == 0) {
        complete = false;  // a smaller group of lanes that has yet to finish on its own
        continue;
      }
      std::ostringstream text;
      text << "lanes of one warp wait for each other at different operations: " << arrived.name << " with mask 0x"
           << std::hex << arrived.mask << " at " << describe(arrived.site) << ", " << other.name << " with mask 0x"
           << other.mask << " at " << describe(other.site);
      fail(text.str());
    }
    slots[lane] = other.slot;
    lanes |= 1u << lane;
  }
  if (!complete) {
    return false;
  }
  if (arrived.resolve != nullptr) {
    arrived.resolve(slots, lanes, arrived.site);
  }
  for (unsigned int lane = 0; lane < count; ++lane) {
    if (lanes >> lane & 1) {
      make_ready(threads_[first + lane]);
    }
  }
  return true;
}

// Nobody can go on: lanes of a warp that ask at one place which of them are active find each other.
bool Grid::release_active_masks() {
  bool released = false;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& leader = threads_[i];
    if (leader.state != State::active_mask) {
      continue;
    }
    const size_t end = std::min(threads_.size(), (i / kWarpSize + 1) * kWarpSize);
    std::vector<Thread*> group;
    uint32_t mask = 0;
    for (size_t j = i; j < end; ++j) {
      Thread& other = threads_[j];
      const bool here = other.state == State::active_mask && same_place(other.site, leader.site);
      if (here && (j == i || seed_ == 0 || random() % 4 != 0)) {
        group.push_back(&other);
        mask |= 1u << (j % kWarpSize);
      }
    }
    for (Thread* thread : group) {
      thread->mask = mask;
      make_ready(*thread);
    }
    released = true;
  }
  return released;
}

void Grid::report_deadlock() {
  struct Group {
    size_t count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Group> places;
  for (const Thread& thread : threads_) {
    if (thread.state == State::barrier || thread.state == State::collective) {
      std::ostringstream place;
      place << thread.name << " at " << describe(thread.site);
      if (thread.state == State::collective) {
        place << " with mask 0x" << std::hex << thread.mask;
      }
      Group& group = places[place.str()];
      group.first = group.count++ == 0 ? &thread : group.first;
    }
  }
  std::ostringstream text;
  text << "deadlock in block " << describe(blockIdx) << ": ";
  for (const auto& [place, group] : places) {
    text << group.count << " of " << threads_.size() << " threads, the first " << describe(group.first->index)
         << ", wait in " << place << "; ";
  }
  text << done_ << " have returned";
  error_ = text.str();
}

std::mutex& launch_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

void fail(const std::string& message, Site where) {
  running->fail(message + " at " + describe(where));
}

std::string run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*entry)(void*), void* context) {
  const std::lock_guard lock(launch_mutex());
  // Never freed: its stacks are reused by every launch.
  static Grid* const state = new Grid;
  running = state;
  return state->run(grid, block, shared_bytes, entry, context);
}

int block_barrier(Barrier kind, bool predicate, Site where) {
  return running->barrier(kind, predicate, where);
}

void warp_collective(const char* name, uint32_t mask, void* slot, Resolve resolve, Site where) {
  running->collective(name, mask, slot, resolve, where);
}

uint32_t active_lanes(Site where) {
  running->wait(State::active_mask, "__activemask()", where);
  return running->thread().mask;
}

uint32_t lane_id() {
  return running->thread().number % kWarpSize;
}

void interleave(Site where) {
  running->interleave(where);
}

void* dynamic_shared_memory() {
  return running->shared();
}

void copy_async(void* shared, const void* global, size_t bytes, size_t zeros, Site where) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes) {
    fail("cp.async of " + std::to_string(bytes) + " bytes, " + std::to_string(zeros) + " of them zero", where);
  }
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail("cp.async of " + std::to_string(bytes) + " bytes: misaligned address", where);
  }
  Thread& self = running->thread();
  std::memset(shared, kPoison, bytes);
  self.copies.push_back({shared, global, bytes, zeros, self.groups});
}

void commit_copies() {
  ++running->thread().groups;
}

void wait_copies(unsigned int groups_left) {
  Thread& self = running->thread();
  size_t kept = 0;
  for (const Copy& copy : self.copies) {
    if (copy.group + groups_left >= self.groups) {
      self.copies[kept++] = copy;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
    std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
  }
  self.copies.resize(kept);
}

}  // namespace segkernels::emulation
