// CUDA emulation on the host, to test the kernels' logic without a GPU. It defines CUDA's names, so
// include it before the kernels.
//
// The threads of a block are fibers of one OS thread. Each runs until it waits for others, at a
// barrier or in a shuffle. Blocks run sequentially, so `__shared__` is `static`. If some threads
// never reach a barrier, the process aborts with a message; on a GPU it would hang, or worse.
//
// Needs x86-64 Linux and C++20 (g++ or clang++).
#pragma once
#define HOST_EMULATION

#include <cuda_bf16.h> // CUDA's headers, whose conversions also compile for the host
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#undef __shared__
#define __shared__ static
using std::max;
using std::min;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

#ifdef __SANITIZE_ADDRESS__
extern "C" void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom,
                                                size_t *size);
#endif

constexpr size_t STACK = 256 << 10;

struct Fiber {
    void *stack_pointer = nullptr;
    std::vector<unsigned char> stack = std::vector<unsigned char>(STACK);
    bool done = true;
    uint3 index;
    void *fake_stack = nullptr;
};

// Barrier among the threads that have not returned.
struct Barrier {
    uint32_t members = 0, arrived = 0, phase = 0;

    void release_if_complete() {
        if (arrived == members) arrived = 0, ++phase;
    }
};

inline std::vector<Fiber> fibers;
inline uint32_t current;
inline void *scheduler;
inline const void *scheduler_bottom;
inline size_t scheduler_size;
inline void *scheduler_fake_stack;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline std::vector<uint64_t> slots;
inline std::vector<unsigned char> dynamic_shared;
inline const std::function<void()> *body;
// Number of barrier arrivals and thread exits, to detect deadlocks.
inline uint64_t progress;

// Switches fibers: saves the callee-saved registers, stores the stack pointer in `*from`, and
// resumes at `to`.
extern "C" void emulation_switch(void **from, void *to);
asm(R"(
.text
.weak emulation_switch
emulation_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");

inline void to_scheduler(bool returned) {
    Fiber &self = fibers[current];
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(returned ? nullptr : &self.fake_stack, scheduler_bottom,
                                   scheduler_size);
#else
    (void)returned;
#endif
    emulation_switch(&self.stack_pointer, scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

inline void leave(Barrier &barrier) {
    --barrier.members;
    if (barrier.members > 0) barrier.release_if_complete();
}

inline void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    (*body)();
    // A returned thread no longer takes part in barriers.
    leave(warp_barriers[current / 32]);
    leave(block_barrier);
    fibers[current].done = true;
    ++progress;
    to_scheduler(true);
    abort();
}

inline void start(Fiber &fiber) {
    auto top = reinterpret_cast<uintptr_t>(fiber.stack.data() + STACK) & ~uintptr_t(15);
    auto *words = reinterpret_cast<void **>(top) - 8; // registers, return address, alignment
    std::fill(words, words + 8, nullptr);
    words[6] = reinterpret_cast<void *>(fiber_main);
    fiber.stack_pointer = words;
    fiber.done = false;
}

inline void resume(uint32_t at) {
    current = at;
    threadIdx = fibers[at].index;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fibers[at].stack.data(), STACK);
#endif
    emulation_switch(&scheduler, fibers[at].stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void wait_at(Barrier &barrier) {
    const uint32_t phase = barrier.phase;
    ++barrier.arrived;
    ++progress;
    barrier.release_if_complete();
    while (barrier.phase == phase) to_scheduler(false);
}

inline void run_block(uint32_t threads) {
    if (fibers.size() < threads) fibers.resize(threads);
    block_barrier = {threads};
    warp_barriers.assign((threads + 31) / 32, {});
    for (uint32_t t = 0; t < threads; ++t) {
        ++warp_barriers[t / 32].members;
        fibers[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y,
                           t / blockDim.x / blockDim.y};
        start(fibers[t]);
    }
    for (bool any = true; any;) {
        any = false;
        const uint64_t before = progress;
        for (uint32_t t = 0; t < threads; ++t)
            if (!fibers[t].done) any = true, resume(t);
        if (any && progress == before) {
            std::fprintf(stderr, "emulation: deadlock at a barrier that not all threads reach\n");
            abort();
        }
    }
}

inline void launch(dim3 grid, dim3 threads, size_t shared_bytes,
                   const std::function<void()> &thread) {
    gridDim = grid, blockDim = threads;
    body = &thread;
    const uint32_t count = threads.x * threads.y * threads.z;
    slots.assign(count, 0);
    dynamic_shared.assign(shared_bytes + 16, 0xa5);
    for (uint32_t z = 0; z < grid.z; ++z)
        for (uint32_t y = 0; y < grid.y; ++y)
            for (uint32_t x = 0; x < grid.x; ++x) blockIdx = {x, y, z}, run_block(count);
}

template <typename V>
V shuffle(V value, uint32_t source_lane) {
    static_assert(sizeof(V) <= 8);
    const uint32_t self = current, source = self / 32 * 32 + source_lane % 32;
    std::memcpy(&slots[self], &value, sizeof(V));
    wait_at(warp_barriers[self / 32]);
    if (source < slots.size()) std::memcpy(&value, &slots[source], sizeof(V));
    wait_at(warp_barriers[self / 32]);
    return value;
}

// All kernels by name. An entry takes pointers to the arguments, like the driver, and returns a
// function that launches the kernel: called immediately, or later if captured.
using Kernel = std::function<std::function<void()>(dim3, dim3, size_t, void **)>;

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

struct Registration {
    template <typename... Arguments>
    Registration(const char *name, void (*kernel)(Arguments...)) {
        kernels()[name] = [kernel](dim3 grid, dim3 threads, size_t shared, void **pointers) {
            const auto values = [&]<size_t... I>(std::index_sequence<I...>) {
                return std::tuple<Arguments...>{*static_cast<Arguments *>(pointers[I])...};
            }(std::index_sequence_for<Arguments...>{});
            return [=] { launch(grid, threads, shared, [&] { std::apply(kernel, values); }); };
        };
    }
};

} // namespace emulation

inline void __syncthreads() { emulation::wait_at(emulation::block_barrier); }
inline void __syncwarp(unsigned = ~0u) {
    emulation::wait_at(emulation::warp_barriers[emulation::current / 32]);
}
template <typename V>
V __shfl_xor_sync(unsigned, V value, unsigned mask) {
    return emulation::shuffle(value, emulation::current % 32 ^ mask);
}
template <typename V>
V __shfl_sync(unsigned, V value, unsigned lane) {
    return emulation::shuffle(value, lane);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        votes |= __shfl_sync(0, uint32_t(vote), lane) << lane;
    return votes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
// CUDA's __expf is approximate: within 2 ulp, plus the rounding of its argument.
#define __expf expf

#define SHARED_MEMORY(type, name)                                                                  \
    type *const name = reinterpret_cast<type *>(                                                   \
        (reinterpret_cast<uintptr_t>(emulation::dynamic_shared.data()) + 15) & ~uintptr_t(15))
#define NAMED_KERNEL(name, ...)                                  \
    extern "C" void name(__VA_ARGS__);                           \
    static const emulation::Registration register_##name{#name, name}; \
    extern "C" void name(__VA_ARGS__)
