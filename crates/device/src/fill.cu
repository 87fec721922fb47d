// Random weights by a formula that any language can make again.
//
// Equation: out[r, c] = bf16(f32(offset + scale * u)), u = (z >> 40) / 2^23 - 1, z = output r * row_len + c + 1 of
// splitmix64 started at `state`. Float64 and two roundings, as on the host: the same bits.
// Mapping: one thread per element, in a loop over the grid. Bound: bytes written (float64 is quick enough to hide).

extern "C" __global__ void __launch_bounds__(256)
    fill_uniform(unsigned short* __restrict__ out, unsigned long long state, double offset, double scale,
                 unsigned long long row_len, unsigned long long placed_len, unsigned long long num_elements) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < num_elements; i += step) {
        unsigned long long z = state + (i + 1) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z = z ^ (z >> 31);
        const double u = __dadd_rn((double)(z >> 40) / 8388608.0, -1.0);
        // Nothing is fused: the host multiplies and adds with two roundings.
        const float value = (float)__dadd_rn(offset, __dmul_rn(scale, u));
        unsigned short bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        const unsigned long long at = placed_len == row_len ? i : i / row_len * placed_len + i % row_len;
        out[at] = bits;
    }
}
