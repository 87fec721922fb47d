// Blocks that run together and reach each other's shared memory (sm_90). For older cards kernels are compiled, but not launched,
// with clusters.
#pragma once
#include "prelude.cuh"

// Arrives at the cluster's barrier: what this thread has written to shared memory is seen by those that wait behind it.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
// Waits until all threads of the cluster have arrived.
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Writes to the place in the cluster's block `rank` that has this block's `address`.
__device__ __forceinline__ void store_to_block(u32_t address, u32_t rank, float x) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "st.shared::cluster.f32 [there], %2;\n"
                 "}" ::"r"(address), "r"(rank), "f"(x)
                 : "memory");
#endif
}
