// Kernels that break one rule each, for the interpreter's tests, and how they should have been.
// `WRONG: <name>` marks the line that the interpreter has to name.
#include "kernels.cuh"

// Sums 256 values per block in a tree. `barriers` is a template so that the two kernels are equal
// but for the barrier.
template <bool barriers>
__device__ __forceinline__ void block_sum(const float* values, float* sums) {
    __shared__ float partial[256];
    partial[threadIdx.x] = values[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            float right = partial[threadIdx.x + half];
            partial[threadIdx.x] += right;
        }
        if (barriers) __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

extern "C" __global__ void sum(const float* values,  // [blocks, 256]
                               float* sums) {        // [blocks]
    block_sum<true>(values, sums);
}

extern "C" __global__ void sum_without_barrier(const float* values,  // [blocks, 256]
                                               float* sums) {        // [blocks]
    block_sum<false>(values, sums);  // WRONG: sum_without_barrier
}

// The same in one warp with shuffles.
extern "C" __global__ void warp_sum(const float* values,  // [32]
                                    float* sums) {        // [1]
    float sum = values[threadIdx.x];
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffff, sum, mask);
    if (threadIdx.x == 0) sums[0] = sum;
}

extern "C" __global__ void warp_sum_of_half(const float* values,  // [32]
                                            float* sums) {        // [1]
    float sum = values[threadIdx.x];
    if (threadIdx.x < 16) {
        sum += __shfl_xor_sync(0xffffffff, sum, 1);  // WRONG: warp_sum_of_half
    }
    sums[threadIdx.x] = sum;
}

extern "C" __global__ void overrun(const float* values,  // [len]
                                   float* output,        // [len]
                                   int len) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= len) {
        output[i] = 2.0f * values[i];  // WRONG: overrun
    }
}

extern "C" __global__ void shared_overrun(float* output) {  // [32]
    __shared__ float tile[32];
    tile[threadIdx.x + 1] = 1.0f;  // WRONG: shared_overrun
    __syncthreads();
    output[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void askew(const float* values,  // [64]
                                 float2* output) {     // [32]
    output[threadIdx.x] = *(const float2*)(values + threadIdx.x);  // WRONG: askew
}

extern "C" __global__ void divergent_barrier(float* output) {  // [64]
    __shared__ float tile[64];
    tile[threadIdx.x] = 1.0f;
    if (threadIdx.x < 40) {
        __syncthreads();  // WRONG: divergent_barrier
        output[threadIdx.x] = tile[63 - threadIdx.x];
    }
}

extern "C" __global__ void writes_input(float* values,    // [32]
                                        float* output) {  // [32]
    output[threadIdx.x] = values[threadIdx.x];
    values[threadIdx.x] = 0.0f;  // WRONG: writes_input
}

extern "C" __global__ void uninitialized_shared(float* output) {  // [64]
    __shared__ float tile[64];
    if (threadIdx.x < 63) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    output[threadIdx.x] = tile[threadIdx.x];  // WRONG: uninitialized_shared
}

// Every block adds one at the same place, without an atomic operation.
extern "C" __global__ void blocks_race(int* count) {  // [1]
    if (threadIdx.x == 0) {
        *count += 1;  // WRONG: blocks_race
    }
}

extern "C" __global__ void blocks_count(int* count) {  // [1]
    if (threadIdx.x == 0) atomicAdd(count, 1);
}

// Atomic, so no race; but who comes last stays.
extern "C" __global__ void last_block(unsigned* last) {  // [1]
    if (threadIdx.x == 0) atomicExch(last, blockIdx.x);
}

extern "C" __global__ void divides_by_zero(const int* divisors,  // [32]
                                           int* output) {        // [32]
    output[threadIdx.x] = 100 / divisors[threadIdx.x];  // WRONG: divides_by_zero
}

extern "C" __global__ void never_ends(volatile int* output) {  // [1]
    while (output[0] == 0) {
    }
    output[0] = 2;
}

// A two-stage pipeline of asynchronous copies. `waits` as above.
template <bool waits>
__device__ __forceinline__ void pipeline(const float4* values, float4* output, int stages) {
    __shared__ float4 tile[2][32];
    auto load = [&](int stage) {
        unsigned to = (unsigned)__cvta_generic_to_shared(&tile[stage % 2][threadIdx.x]);
        const float4* from = values + stage * 32 + threadIdx.x;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    };
    load(0);
    asm volatile("cp.async.commit_group;" ::: "memory");
    for (int stage = 0; stage < stages; ++stage) {
        if (stage + 1 < stages) load(stage + 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (waits) asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        float4 other = tile[stage % 2][31 - threadIdx.x];
        output[stage * 32 + threadIdx.x] = other;
        __syncthreads();
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

extern "C" __global__ void copies(const float4* values,  // [stages, 32]
                                  float4* output,        // [stages, 32]
                                  int stages) {
    pipeline<true>(values, output, stages);
}

extern "C" __global__ void copies_without_wait(const float4* values,  // [stages, 32]
                                               float4* output,        // [stages, 32]
                                               int stages) {
    pipeline<false>(values, output, stages);  // WRONG: copies_without_wait
}

// A warp that hands values on through shared memory.
template <bool synchronizes>
__device__ __forceinline__ void hand_on(float* output) {
    __shared__ float tile[64];
    tile[threadIdx.x] = (float)threadIdx.x;
    if (synchronizes) __syncwarp();
    output[threadIdx.x] = tile[threadIdx.x ^ 1];
}

extern "C" __global__ void handed_on(float* output) { hand_on<true>(output); }  // [64]

extern "C" __global__ void handed_on_too_early(float* output) {  // [64]
    hand_on<false>(output);                                      // WRONG: handed_on_too_early
}
