// What the kernels share. Compiled with --fmad=false: a product and a sum are two roundings, as the
// reference computes them; where one rounding is wanted, a kernel says __fmaf_rn.
#pragma once

typedef unsigned long long word;

// Tells the host of a number that is not finite: plumbline::cuda::status unpacks the word. The
// smallest one stays, so that the order of the threads does not show.
__device__ __forceinline__ void complain(word* status, unsigned code, word index, float value) {
    word kind = isnan(value) ? 0 : value > 0.0f ? 1 : 2;
    atomicMin(status, (word)code << 48 | index << 2 | kind);
}

// A loop of one thread over a line of elements begins here and goes on by all_threads().
__device__ __forceinline__ word first_element() {
    return (word)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ word all_threads() { return (word)gridDim.x * blockDim.x; }
