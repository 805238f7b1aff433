// dropout: as ops/dropout/mod.rs states it. Twin: its cpu.rs. Class: exact.
// x [len] -> output [len], replaced or added to.
// One thread per element, grid-stride. Reads 4 B and writes 4 B per element, reads 4 B more to add.
#include "kernels.cuh"

extern "C" __global__ void dropout(const float* x,  // [len]
                                   float* output,   // [len]
                                   word key,
                                   unsigned threshold,  // a random number below it is a zero
                                   float factor,        // on the others
                                   unsigned add, word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        const unsigned random = (unsigned)(random_word(key, i) >> 32);
        const float kept = random >= threshold ? x[i] * factor : 0.0f;
        output[i] = add ? output[i] + kept : kept;
    }
}
