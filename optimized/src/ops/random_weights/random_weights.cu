// random_weights: as ops/random_weights/mod.rs states it. Twin: its cpu.rs. Class: exact.
// -> output [len] f32.
// One thread per element, grid-stride. Writes 4 B per element after some 20 integer operations: at
// 4.3 TB/s, 1 ns for 1000 weights.
#include "kernels.cuh"

// The finalizer of SplitMix64.
__device__ __forceinline__ word mix(word z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

extern "C" __global__ void random_weights(float* output,  // [len]
                                          word start,     // stands for the number before the first
                                          float step,     // of the sums
                                          word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        word bits = mix(start + (i + 1) * 0x9e3779b97f4a7c15ull);
        word sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        // 131070 is the mean of four numbers from 0 to 65535.
        output[i] = static_cast<float>(static_cast<int>(sum) - 131070) * step;
    }
}
