// squared_norm. Twin: ops/squared_norm/cpu.rs. Class: reduction, in f64.
// x [len] -> partial [ceil(len / 8192)] f64, which sums_add adds up in order.
// A block per 8192 elements: 32 per thread, then a tree over the warp, then one over the warps; no
// part of the order depends on the device. Reads 4 B per element.
#include "kernels.cuh"

constexpr unsigned SPAN = 8192;  // elements of a block; cuda.rs has it too
constexpr unsigned THREADS = 256;

extern "C" __global__ void squared_norm(const float* x,   // [len]
                                        double* partial,  // [blocks]
                                        word len) {
    __shared__ double warps[THREADS / 32];
    word start = (word)blockIdx.x * SPAN, end = min(start + SPAN, len);
    double sum = 0.0;
    for (word i = start + threadIdx.x; i < end; i += THREADS) {
        double value = x[i];
        sum += value * value;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();  // the sums of all warps are there
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < THREADS / 32 ? warps[threadIdx.x] : 0.0);
        if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    }
}
