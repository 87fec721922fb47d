// Blocks that run together and reach each other's shared memory (sm_90). For older cards kernels are compiled, but not launched,
// with clusters.
#pragma once
#include "mbarrier.cuh"

// Arrives at the cluster's barrier, which says that others run: what they have written is another matter.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
// As `cluster_arrive`, and what this thread has written is seen by all that wait.
__device__ __forceinline__ void cluster_arrive_release() {
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

// Numbers that the blocks of a cluster send each other, once: N come to each. A barrier of the cluster instead would also wait for
// whatever else its threads have begun to read and write.
template <int N> struct Mail {
    u64_t barrier;
    float numbers[N];

    // By one thread of each block; then `cluster_arrive` by all.
    __device__ __forceinline__ void open() {
#if __CUDA_ARCH__ >= 900
        mbarrier_init(shared_address(&barrier), 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(shared_address(&barrier), sizeof(numbers));
#endif
    }
    // As number `i` of block `rank`, which has opened its mail: behind `cluster_wait`.
    __device__ __forceinline__ void send(int i, u32_t rank, float x) {
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n"
                     ".reg .b32 number, barrier;\n"
                     "mapa.shared::cluster.u32 number, %0, %2;\n"
                     "mapa.shared::cluster.u32 barrier, %1, %2;\n"
                     "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [number], %3, [barrier];\n"
                     "}" ::"r"(shared_address(&numbers[i])),
                     "r"(shared_address(&barrier)), "r"(rank), "f"(x)
                     : "memory");
#endif
    }
    // Waits until all N are here. Nobody writes to the block after that: it may end.
    __device__ __forceinline__ void receive() {
#if __CUDA_ARCH__ >= 900
        mbarrier_wait<true>(shared_address(&barrier), 0);
#endif
    }
};

// Four float32 at this address of shared memory, in block `rank`: behind a barrier that released them.
__device__ __forceinline__ Vec<f32_t, 4> load_of_block(u32_t address, u32_t rank) {
    Vec<f32_t, 4> v = {};
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
                 "}"
                 : "=f"(v.at[0]), "=f"(v.at[1]), "=f"(v.at[2]), "=f"(v.at[3])
                 : "r"(address), "r"(rank)
                 : "memory");
#endif
    return v;
}
