// What the kernels share. Compiled with --fmad=false: a product and a sum are two roundings, as the
// reference computes them; where one rounding is wanted, a kernel says __fmaf_rn.
#pragma once

typedef unsigned long long word;

// Tells the host of a number that is not finite, or of a finite one that should have been a code:
// plumbline::cuda::status unpacks the word. The smallest one stays, so that the order of the
// threads does not show.
__device__ __forceinline__ void complain(word* status, unsigned code, word index, float value) {
    word kind = isfinite(value) ? 3 : isnan(value) ? 0 : value > 0.0f ? 1 : 2;
    atomicMin(status, (word)code << 48 | index << 2 | kind);
}

// A loop of one thread over a line of elements begins here and goes on by all_threads().
__device__ __forceinline__ word first_element() {
    return (word)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ word all_threads() { return (word)gridDim.x * blockDim.x; }

// WIDTH neighbours that one instruction reads or writes; 4 need an address aligned to 16 bytes.
template <unsigned WIDTH>
struct alignas(4 * WIDTH) Pack {
    float at[WIDTH];
};

template <unsigned WIDTH>
__device__ __forceinline__ Pack<WIDTH> pack(const float* from) {
    return *reinterpret_cast<const Pack<WIDTH>*>(from);
}

template <unsigned WIDTH>
__device__ __forceinline__ void store(float* to, Pack<WIDTH> values) {
    *reinterpret_cast<Pack<WIDTH>*>(to) = values;
}

// The sum over a warp in every lane of it, as a tree: the order is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// The sum over a block of whole warps in every thread of it, as a tree. Every thread calls.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warp[32];
    value = warp_sum(value);
    __syncthreads();  // an earlier call may still be reading
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f);
}

// The finalizer of SplitMix64, and the 64 random bits of a place: ops/counter.rs.
__device__ __forceinline__ word mix(word z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

__device__ __forceinline__ word random_word(word key, word place) {
    return mix(key + (place + 1) * 0x9e3779b97f4a7c15ull);
}
