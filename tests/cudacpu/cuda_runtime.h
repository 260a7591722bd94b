// A CUDA device on the CPU: what kernels/cuda uses of it. Each thread of a block is a coroutine, blocks run one after another, and
// CUDACPU_ORDER decides who comes first (0: in order, 1: in reverse, any other: shuffled with this seed), so that a missing barrier
// changes results. What a driver would refuse is refused (an empty or too large grid); what would hang or trap aborts (threads that
// wait at different barriers, a lane that is missing from its warp, a fragment that is not aligned).
//
// With the thread sanitizer, it knows each thread of a block as a thread, ordered with the others by barriers alone (a shuffle
// orders no memory), and reports every race within a block, whether or not it changes results. Blocks are ordered for it, because
// they share the arrays that stand for shared memory.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
// CUDACPU_UNSEEN: a function that changes from one thread to another, so that what it does belongs to neither.
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define CUDACPU_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDACPU_UNSEEN
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

namespace cudacpu {

inline uint3 thread_index, block_index;
inline dim3 grid_size;
CUDACPU_UNSEEN inline uint3 this_thread() { return thread_index; }
CUDACPU_UNSEEN inline uint3 this_block() { return block_index; }
CUDACPU_UNSEEN inline dim3 this_grid() { return grid_size; }

}  // namespace cudacpu

#define threadIdx (::cudacpu::this_thread())
#define blockIdx (::cudacpu::this_block())
#define gridDim (::cudacpu::this_grid())

namespace cudacpu {

inline cudaError_t last_error = cudaSuccess;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "cudacpu: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    std::abort();
}

enum class State { running, at_warp, at_barrier, exited };

struct Fiber {
    static constexpr size_t kStack = 64 << 10;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
};

// What the thread sanitizer takes for the threads of a block. All calls do nothing without it.
class Witness {
  public:
#ifdef __SANITIZE_THREAD__
    static constexpr bool kOn = true;
    void block_begins(size_t count) {
        scheduler_ = __tsan_get_current_fiber();
        while (threads_.size() < count) threads_.push_back(__tsan_create_fiber(0));
        __tsan_release(&begin_);
    }
    void block_ends() { __tsan_acquire(&end_); }
    CUDACPU_UNSEEN void thread_begins(int t) { thread_goes_on(t), __tsan_acquire(&begin_); }
    CUDACPU_UNSEEN void thread_ends() { __tsan_release(&end_), thread_waits(); }
    CUDACPU_UNSEEN void thread_waits() { __tsan_switch_to_fiber(scheduler_, __tsan_switch_to_fiber_no_sync); }
    CUDACPU_UNSEEN void thread_goes_on(int t) { __tsan_switch_to_fiber(threads_[t], __tsan_switch_to_fiber_no_sync); }
    // Successive barriers are two objects by turns: a thread may reach the next one before another has left this one.
    CUDACPU_UNSEEN void before_barrier(unsigned passed) { __tsan_release(&barriers_[passed % 2]); }
    CUDACPU_UNSEEN void after_barrier(unsigned passed) { __tsan_acquire(&barriers_[passed % 2]); }

  private:
    void* scheduler_ = nullptr;
    std::vector<void*> threads_;
    char begin_, end_, barriers_[2];
#else
    static constexpr bool kOn = false;
    void block_begins(size_t) {}
    void block_ends() {}
    void thread_begins(int) {}
    void thread_ends() {}
    void thread_waits() {}
    void thread_goes_on(int) {}
    void before_barrier(unsigned) {}
    void after_barrier(unsigned) {}
#endif
};

struct Thread {
    State state;
    int line;  // of the barrier at which it waits
    Fiber* fiber;
    unsigned passed;  // barriers
};

// One block at a time. A fiber runs threads until one has to wait; then another fiber takes the threads that are left. For the
// thread sanitizer, which would see threads share a stack, each thread has its own.
class Block {
  public:
    void run(unsigned count, std::vector<int>& order, std::mt19937* random, const std::function<void()>& kernel) {
        threads_.assign(count, {State::running, 0, nullptr, 0});
        order_ = &order, kernel_ = &kernel, next_ = 0;
        witness_.block_begins(count);
        while (next_ < count) resume(take_fiber());
        while (release()) {
            if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
            for (const int t : order)
                if (threads_[t].state == State::running) current_ = t, resume(threads_[t].fiber);
        }
        witness_.block_ends();
    }
    CUDACPU_UNSEEN void wait(State state, int line) {
        const int t = current_;
        const unsigned passed = threads_[t].passed;
        if (state == State::at_barrier) witness_.before_barrier(passed);
        witness_.thread_waits();
        threads_[t] = {state, line, running_, passed + (state == State::at_barrier)};
        swapcontext(&threads_[t].fiber->context, &scheduler_);
        thread_index = {static_cast<unsigned>(t), 0, 0};
        witness_.thread_goes_on(t);
        if (state == State::at_barrier) witness_.after_barrier(passed);
    }
    CUDACPU_UNSEEN float exchange(float x, int step) {
        const unsigned lane = current_ % 32;
        values_[current_ / 32][lane] = x;
        wait(State::at_warp, 0);
        const float found = values_[current_ / 32][lane ^ step];
        wait(State::at_warp, 0);
        return found;
    }

  private:
    Fiber* take_fiber() {
        if (Witness::kOn) {
            const size_t t = (*order_)[next_];
            while (fibers_.size() <= t) fibers_.push_back(std::make_unique<Fiber>());
            idle_.assign(1, fibers_[t].get());
        }
        if (idle_.empty()) fibers_.push_back(std::make_unique<Fiber>()), idle_.push_back(fibers_.back().get());
        Fiber* fiber = idle_.back();
        idle_.pop_back();
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get(), fiber->context.uc_stack.ss_size = Fiber::kStack;
        makecontext(&fiber->context, begin, 0);
        return fiber;
    }
    CUDACPU_UNSEEN void resume(Fiber* fiber) {
        running_ = fiber;
        swapcontext(&scheduler_, &fiber->context);
    }
    CUDACPU_UNSEEN static void begin() { the().work(); }
    CUDACPU_UNSEEN void work() {
        do {
            current_ = (*order_)[next_++];
            thread_index = {static_cast<unsigned>(current_), 0, 0};
            witness_.thread_begins(current_);
            (*kernel_)();
            witness_.thread_ends();
            threads_[current_].state = State::exited;
        } while (!Witness::kOn && next_ < order_->size());
        idle_.push_back(running_);
        swapcontext(&running_->context, &scheduler_);
    }
    // Lets those go on whose wait is over: whole warps, or else the block. False where all have left.
    bool release() {
        bool moved = false, alive = false;
        int line = 0;
        for (size_t first = 0; first < threads_.size(); first += 32) {
            const auto begin = threads_.begin() + first, end = begin + std::min<size_t>(32, threads_.size() - first);
            const auto waits = [](const Thread& t) { return t.state == State::at_warp; };
            if (std::none_of(begin, end, waits)) continue;
            if (!std::all_of(begin, end, waits)) fail("a lane is missing from its warp");
            std::for_each(begin, end, [](Thread& t) { t.state = State::running; });
            moved = true;
        }
        if (moved) return true;
        for (Thread& t : threads_) {
            if (t.state == State::exited) continue;
            if (alive && t.line != line) fail("threads wait at different barriers");
            alive = true, line = t.line, t.state = State::running;
        }
        return alive;
    }

    std::vector<Thread> threads_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Fiber*> idle_;
    ucontext_t scheduler_;
    Fiber* running_ = nullptr;
    std::vector<int>* order_ = nullptr;
    const std::function<void()>* kernel_ = nullptr;
    size_t next_ = 0;
    int current_ = 0;
    float values_[32][32];
    Witness witness_;

  public:
    static Block& the() {
        static Block block;
        return block;
    }
};

inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535 || block.x == 0 || block.x > 1024) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
    if (block.y != 1 || block.z != 1) fail("blocks of more than one dimension are not emulated");
    const char* wish = std::getenv("CUDACPU_ORDER");
    const int order = wish == nullptr ? 0 : std::atoi(wish);
    std::mt19937 random(order);
    std::vector<int> threads(block.x);
    std::vector<uint64_t> where(blocks);
    std::iota(threads.begin(), threads.end(), 0);
    std::iota(where.begin(), where.end(), 0);
    if (order == 1) std::reverse(threads.begin(), threads.end()), std::reverse(where.begin(), where.end());
    if (order > 1) std::shuffle(where.begin(), where.end(), random);
    grid_size = grid;
    for (const uint64_t i : where) {
        block_index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        if (order > 1) std::shuffle(threads.begin(), threads.end(), random);
        Block::the().run(block.x, threads, order > 1 ? &random : nullptr, kernel);
    }
}

// What `kernel<<<grid, block, shared, stream>>>` becomes: to be called with the kernel's arguments.
template <class Kernel>
auto configured(dim3 grid, dim3 block, size_t shared, cudaStream_t, Kernel kernel) {
    if (shared != 0) fail("dynamic shared memory is not emulated");
    return [=](const auto&... arguments) { launch(grid, block, [&] { kernel(arguments...); }); };
}

}  // namespace cudacpu

#define __syncthreads() ::cudacpu::Block::the().wait(::cudacpu::State::at_barrier, __LINE__)
inline void __stcg(uint4* p, const uint4& value) { *p = value; }
template <class T>
T __ldg(const T* p) {
    return *p;
}
inline float __shfl_xor_sync(unsigned mask, float x, int step) {
    if (mask != 0xFFFFFFFFu) cudacpu::fail("only whole warps are emulated");
    return cudacpu::Block::the().exchange(x, step);
}
inline cudaError_t cudaGetLastError() { return std::exchange(cudacpu::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

struct __nv_bfloat16 {
    uint16_t bits;
    operator float() const {
        const uint32_t wide = uint32_t{bits} << 16;
        float x;
        std::memcpy(&x, &wide, sizeof x);
        return x;
    }
};
struct __half {
    uint16_t bits;
    operator float() const {
        _Float16 x;
        std::memcpy(&x, &bits, sizeof x);
        return static_cast<float>(x);
    }
};

// Lane l keeps elements 8 l .. 8 l + 7 of the sums, and what they need: row l / 2 of the left side and eight columns of the right.
namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major };

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment;
template <class T>
struct fragment<matrix_a, 16, 16, 16, T, row_major> {
    float x[16];
};
template <class T>
struct fragment<matrix_b, 16, 16, 16, T, col_major> {
    float x[8][16];
};
template <>
struct fragment<accumulator, 16, 16, 16, float> {
    float x[8];
};

inline void check(const void* p, unsigned bytes) {
    if (reinterpret_cast<uintptr_t>(p) % 32) cudacpu::fail("a fragment is not on a 32-byte boundary");
    if (bytes % 16) cudacpu::fail("the rows of a fragment are not multiples of 16 bytes apart");
}
inline unsigned row() { return threadIdx.x % 32 / 2; }
inline unsigned column() { return threadIdx.x % 2 * 8; }

template <class T>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major>& a, const T* p, unsigned stride) {
    check(p, stride * sizeof(T));
    for (int k = 0; k < 16; ++k) a.x[k] = p[row() * stride + k];
}
template <class T>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, col_major>& b, const T* p, unsigned stride) {
    check(p, stride * sizeof(T));
    for (int j = 0; j < 8; ++j)
        for (int k = 0; k < 16; ++k) b.x[j][k] = p[(column() + j) * stride + k];
}
using Sum = fragment<accumulator, 16, 16, 16, float>;
inline void fill_fragment(Sum& sum, float value) { std::fill(sum.x, sum.x + 8, value); }
template <class T>
void mma_sync(Sum& d, const fragment<matrix_a, 16, 16, 16, T, row_major>& a,
              const fragment<matrix_b, 16, 16, 16, T, col_major>& b, const Sum& c) {
    for (int j = 0; j < 8; ++j) {
        float sum = c.x[j];
        for (int k = 0; k < 16; ++k) sum = std::fma(a.x[k], b.x[j][k], sum);
        d.x[j] = sum;
    }
}
inline void store_matrix_sync(float* p, const Sum& sum, unsigned stride, layout_t) {
    check(p, stride * sizeof(float));
    for (int j = 0; j < 8; ++j) p[row() * stride + column() + j] = sum.x[j];  // one by one: the thread sanitizer sees no memmove
}

}  // namespace nvcuda::wmma
