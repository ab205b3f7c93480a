// Stackful coroutines: what a thread of a block runs on. A switch is a dozen instructions on x86-64 (ucontext, which
// makes a system call per switch, elsewhere or with SEGKERNELS_EMULATION_UCONTEXT) and tells AddressSanitizer of the
// new stack.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(SEGKERNELS_EMULATION_UCONTEXT)
#define SEGKERNELS_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace segkernels::emulation {

struct Thread;

#if !defined(SEGKERNELS_FIBER_UCONTEXT)
// Pushes the callee-saved registers, stores the stack pointer in *save, and returns on the stack `load`.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm volatile(
      "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
      "ret");
}
#endif

class Fiber {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kStackBytes = size_t{256} << 10;  // redzones make frames larger
#else
  static constexpr size_t kStackBytes = size_t{128} << 10;
#endif

  // The context of the caller of the first switch, on the stack it already has.
  Fiber() = default;

  // `main` never returns. The page below the stack is left unmapped, so that an overflow faults.
  explicit Fiber(void (*main)()) : main_(main) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    mprotect(memory, page, PROT_NONE);
    stack_ = static_cast<char*>(memory) + page;
    bytes_ = kStackBytes;
    reset();
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets where it stood: the next switch enters `main` afresh. Frames left on the stack are not unwound.
  void reset() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, bytes_);
#endif
#if defined(SEGKERNELS_FIBER_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = bytes_;
    context_.uc_link = nullptr;
    makecontext(&context_, main_, 0);
#else
    // Six registers, the entry point, and a null return address that also aligns the stack as a call would.
    void** top = reinterpret_cast<void**>(stack_ + bytes_) - 2;
    top[0] = reinterpret_cast<void*>(main_);
    top[1] = nullptr;
    for (int i = 1; i <= 6; ++i) {
      top[-i] = nullptr;
    }
    stack_pointer_ = top - 6;
#endif
  }

  // Leaves this fiber for `next`; returns when somebody switches back.
  void switch_to(Fiber& next) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    previous() = this;
    __sanitizer_start_switch_fiber(&fake_stack, next.stack_, next.bytes_);
#endif
#if defined(SEGKERNELS_FIBER_UCONTEXT)
    swapcontext(&context_, &next.context_);
#else
    switch_stack(&stack_pointer_, next.stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // The first thing `main` calls. The stack it came from belongs to the operating system's thread on the first switch,
  // and only the sanitizer knows its bounds.
  static void entered() {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    previous()->stack_ = static_cast<char*>(const_cast<void*>(bottom));
    previous()->bytes_ = bytes;
#endif
  }

  Thread* thread = nullptr;  // the emulated thread that runs on it

 private:
#if defined(__SANITIZE_ADDRESS__)
  static Fiber*& previous() {
    static Fiber* fiber = nullptr;
    return fiber;
  }
#endif
  void (*main_)() = nullptr;
  char* stack_ = nullptr;
  size_t bytes_ = 0;
#if defined(SEGKERNELS_FIBER_UCONTEXT)
  ucontext_t context_ = {};
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace segkernels::emulation
