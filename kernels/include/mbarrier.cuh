// Barriers in shared memory (sm_90), which copies and other blocks can arrive at, by their addresses there (`shared_address`).
#pragma once
#include "prelude.cuh"

// For `arrivals` arrivals a phase; by one thread, before `mbarrier_init_fence` and a barrier of the block.
__device__ __forceinline__ void mbarrier_init(u32_t barrier, u32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine too; by the thread that initialised them.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// One arrival, which releases what this thread has written.
__device__ __forceinline__ void mbarrier_arrive(u32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival, and `bytes` that copies have yet to bring before the phase ends.
__device__ __forceinline__ void mbarrier_arrive_expect(u32_t barrier, u32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Whether the phase of this parity is over, by one of the waiting instructions.
#define MBARRIER_IS_OVER(instruction) \
    u32_t is_over; \
    asm volatile("{\n" \
                 ".reg .pred p;\n" \
                 "mbarrier." #instruction ".shared::cta.b64 p, [%1], %2;\n" \
                 "selp.u32 %0, 1, 0, p;\n" \
                 "}" \
                 : "=r"(is_over) \
                 : "r"(barrier), "r"(parity) \
                 : "memory"); \
    return is_over != 0
// May wait a while before it says no.
__device__ __forceinline__ bool mbarrier_try_wait(u32_t barrier, u32_t parity) {
    MBARRIER_IS_OVER(try_wait.parity);
}
// Doesn't wait.
__device__ __forceinline__ bool mbarrier_test(u32_t barrier, u32_t parity) { MBARRIER_IS_OVER(test_wait.parity); }
// As `mbarrier_try_wait`, and what other blocks of the cluster have brought is seen after a yes.
__device__ __forceinline__ bool mbarrier_try_wait_cluster(u32_t barrier, u32_t parity) {
    MBARRIER_IS_OVER(try_wait.parity.acquire.cluster);
}
#undef MBARRIER_IS_OVER
// Waits for the end of the phase of this parity; the phase before a fresh barrier's first has parity 1 and is over.
// OF_CLUSTER: what other blocks have brought is seen then, too.
// With WAIT_LIMIT_NS, for debugging, gives up after so many nanoseconds by a trap.
template <bool OF_CLUSTER = false> __device__ __forceinline__ void mbarrier_wait(u32_t barrier, u32_t parity) {
    const auto is_over = [&] {
        return OF_CLUSTER ? mbarrier_try_wait_cluster(barrier, parity) : mbarrier_try_wait(barrier, parity);
    };
#ifdef WAIT_LIMIT_NS
    if (is_over()) return;
    u64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    while (!is_over()) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (now - start > WAIT_LIMIT_NS) asm volatile("trap;");
    }
#else
    while (!is_over()) {
    }
#endif
}
