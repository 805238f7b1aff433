// swiglu, swiglu_backward: Eqs. (N5), (N5b). Twin: ops/swiglu/cpu.rs. Class: bounded.
// gate, up, d_output [len] f32 -> output, d_gate, d_up [len] f32.
// One thread per element, grid-stride. Reads 8 B and writes 4 B per element; backward 12 B and 8 B.
#include "kernels.cuh"

extern "C" __global__ void swiglu(const float* gate,  // [len]
                                  const float* up,    // [len]
                                  float* output,      // [len]
                                  word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        output[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

extern "C" __global__ void swiglu_backward(const float* gate,      // [len]
                                           const float* up,        // [len]
                                           const float* d_output,  // [len]
                                           float* d_gate,          // [len]
                                           float* d_up,            // [len]
                                           word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        float p = 1.0f / (1.0f + expf(-gate[i]));
        d_gate[i] = d_output[i] * up[i] * (p * (1.0f + gate[i] * (1.0f - p)));
        d_up[i] = d_output[i] * (gate[i] * p);
    }
}
