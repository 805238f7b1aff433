// add: Eq. (N8). Twin: ops/add/cpu.rs. Class: exact.
// x [len], y [len] -> y [len].
// Four elements per thread, grid-stride. Reads 8 B and writes 4 B per element.
#include "kernels.cuh"

extern "C" __global__ void add(const float* x,  // [len]
                               float* y,        // [len]
                               word len) {
    for (word i = first_element(); i < len / 4; i += all_threads()) {
        float4 a = reinterpret_cast<const float4*>(x)[i];
        float4 b = reinterpret_cast<float4*>(y)[i];
        b.x += a.x, b.y += a.y, b.z += a.z, b.w += a.w;
        reinterpret_cast<float4*>(y)[i] = b;
    }
    for (word i = len / 4 * 4 + first_element(); i < len; i += all_threads()) y[i] += x[i];
}
