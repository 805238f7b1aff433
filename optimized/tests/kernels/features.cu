// Kernels that are right and use what the interpreter has to know, each with its twin in
// tests/interpreter.rs.
#include "kernels.cuh"

__constant__ float steps[4] = {0.5f, 1.0f, 2.0f, 4.0f};

// Memory of a thread, indexed at run time, and a table of the module.
extern "C" __global__ void tables(const int* order,  // [threads, 4], a permutation of 0..4
                                  float* output) {   // [threads]
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    float own[4];
    for (int i = 0; i < 4; ++i) own[order[t * 4 + i]] = (float)i;
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) sum += own[(t + i) % 4] * steps[i];
    output[t] = sum;
}

// Loops of different lengths, left early by some; a block of three dimensions and a part of a warp.
extern "C" __global__ void collatz(const unsigned* numbers,  // [blocks, 5, 3, 3]
                                   unsigned* lengths) {      // [blocks, 5, 3, 3]
    unsigned t = threadIdx.x + 3 * (threadIdx.y + 3 * threadIdx.z) + 45 * blockIdx.x;
    unsigned number = numbers[t], length = 0;
    while (number != 1) {
        if (length == 40) break;
        if (number % 2 == 0) {
            number /= 2;
        } else {
            number = 3 * number + 1;
        }
        ++length;
    }
    lengths[t] = length;
}

// Bytes in and out, through shared memory that the launch sizes; every byte has another writer.
extern "C" __global__ void reverse_bytes(const signed char* bytes,  // [blocks, threads]
                                         signed char* output) {     // [blocks, threads]
    extern __shared__ signed char line[];
    unsigned start = blockIdx.x * blockDim.x;
    line[threadIdx.x] = bytes[start + threadIdx.x];
    __syncthreads();
    output[start + threadIdx.x] = -line[blockDim.x - 1 - threadIdx.x];
}

// Votes, ballots, shuffles of segments, atomic operations on shared and global memory.
extern "C" __global__ void histogram(const int* values,      // [blocks, 64], 0..8
                                     unsigned* counts,       // [8]
                                     unsigned* ballots,      // [blocks, 2]
                                     int* neighbours,        // [blocks, 64]
                                     unsigned long long* largest) {  // [1]
    __shared__ unsigned bins[8];
    unsigned t = blockIdx.x * 64 + threadIdx.x;
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    int value = values[t];
    atomicAdd(&bins[value], 1u);
    unsigned odd = __ballot_sync(0xffffffff, value % 2);
    if (threadIdx.x % 32 == 0) ballots[t / 32] = __popc(odd);
    int next = __shfl_down_sync(0xffffffff, value, 1, 8);
    if (__any_sync(0xffffffff, value == 7)) next += 100;
    neighbours[t] = next;
    atomicMax(largest, (unsigned long long)value << 40 | t);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// What functions of the compiler's library are made of.
extern "C" __global__ void functions(const float* x,   // [len]
                                     float* output,    // [8, len]
                                     int len) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float v = x[i];
    output[i] = expf(v);
    output[len + i] = logf(fabsf(v) + 0.1f);
    output[2 * len + i] = sinf(v);
    output[3 * len + i] = cosf(v);
    output[4 * len + i] = rsqrtf(fabsf(v) + 0.1f);
    output[5 * len + i] = tanhf(v);
    output[6 * len + i] = powf(fabsf(v) + 0.1f, 1.5f);
    output[7 * len + i] = (float)exp((double)v);
}
