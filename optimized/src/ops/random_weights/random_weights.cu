// random_weights: as ops/random_weights/mod.rs states it. Twin: its cpu.rs. Class: exact.
// -> output [len] f32.
// One thread per element, grid-stride. Writes 4 B per element after some 20 integer operations: at
// 4.3 TB/s, 1 ns for 1000 weights.
#include "kernels.cuh"

extern "C" __global__ void random_weights(float* output,  // [len]
                                          word start,     // stands for the number before the first
                                          float step,     // of the sums
                                          word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        word bits = random_word(start, i);
        word sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        // 131070 is the mean of four numbers from 0 to 65535.
        output[i] = static_cast<float>(static_cast<int>(sum) - 131070) * step;
    }
}
