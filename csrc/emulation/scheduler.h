// Runs a grid on the CPU: blocks in turn, the threads of a block as fibers that change places at barriers, warp
// collectives and, now and then, atomics. A seed draws every choice; seed 0 is plain index order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

#include "vectors.h"

namespace segkernels::emulation {

using Site = std::source_location;

constexpr unsigned int kWarpSize = 32;
// What sm_86 and sm_89, which run the sm_80 build, let one block have; larger devices have more.
constexpr size_t kMaxSharedBytes = 99 * 1024;

// Stops the grid; the launch raises the message with the thread, the block and the place.
[[noreturn]] void fail(const std::string& message, Site where);

// Runs entry(context) for every thread of the grid; returns what went wrong, or an empty string.
std::string run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*entry)(void*), void* context);

enum class Barrier { sync, count, all, any };

// Waits for every thread of the block to reach the same barrier; returns the reduction of the predicates.
int block_barrier(Barrier kind, bool predicate, Site where);

// Waits for every lane in `mask` to arrive with the same mask at the same kind of operation. The last one calls
// resolve(slots, lanes) with each lane's slot (null for a lane that takes no part), which fills in everyone's result.
using Resolve = void (*)(void* const* slots, uint32_t lanes, Site where);
void warp_collective(const char* name, uint32_t mask, void* slot, Resolve resolve, Site where);

// The lanes that wait here too when nobody in the block can go on: any subset is right, and a seed draws one.
uint32_t active_lanes(Site where);

uint32_t lane_id();

// Lets other threads run first, if the seed says so: an atomic is a place where their order shows. A block that does
// nothing but atomics for very long spins on one.
void interleave(Site where);

// The block's dynamic shared memory, 0xFF in every byte when the block starts.
void* dynamic_shared_memory();

// cp.async: what is copied becomes visible to the thread at its wait, and reads as 0xFF until then.
void copy_async(void* shared, const void* global, size_t bytes, size_t zeros, Site where);
void commit_copies();
void wait_copies(unsigned int groups_left);

}  // namespace segkernels::emulation

// The built-in variables of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = segkernels::emulation::kWarpSize;
