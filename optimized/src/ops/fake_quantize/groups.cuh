// What operations on a weight in groups share: the floor of a scale, neighbouring values and codes,
// the columns of one thread, the sum of a group.
#pragma once
#include "bf16.cuh"
#include "kernels.cuh"

#define SCALE_FLOOR 1e-8f  // a constant of type float would be a variable in memory

// Whether a lane takes four columns or one. The host counts tiles by the same rule.
__device__ __forceinline__ bool by_four(unsigned group_size) { return group_size % 4 == 0; }

__device__ __forceinline__ float floored(float scale) {
    return scale < SCALE_FLOOR ? SCALE_FLOOR : scale;  // a NaN stays one
}

// N neighbouring floats, four at a time where N is a multiple of four and so is their place.
template <unsigned N>
__device__ __forceinline__ void load(const float* from, float (&to)[N]) {
    if constexpr (N % 4 == 0) {
        for (unsigned k = 0; k < N; k += 4) {
            float4 four = *reinterpret_cast<const float4*>(from + k);
            to[k] = four.x, to[k + 1] = four.y, to[k + 2] = four.z, to[k + 3] = four.w;
        }
    } else {
        for (unsigned k = 0; k < N; ++k) to[k] = from[k];
    }
}

template <unsigned N>
__device__ __forceinline__ void store(float* to, const float (&from)[N]) {
    if constexpr (N % 4 == 0) {
        for (unsigned k = 0; k < N; k += 4) {
            *reinterpret_cast<float4*>(to + k) =
                make_float4(from[k], from[k + 1], from[k + 2], from[k + 3]);
        }
    } else {
        for (unsigned k = 0; k < N; ++k) to[k] = from[k];
    }
}

// The same of a type of one or two bytes; the place of four is a multiple of four.
template <typename T, unsigned N>
__device__ __forceinline__ void load(const T* from, T (&to)[N]) {
    struct alignas(N * sizeof(T)) Whole {
        T at[N];
    };
    Whole whole = *reinterpret_cast<const Whole*>(from);
    for (unsigned k = 0; k < N; ++k) to[k] = whole.at[k];
}

// N neighbouring weights of whatever type as the floats that they stand for.
template <typename W, unsigned N>
__device__ __forceinline__ void load_widened(const W* from, float (&to)[N]) {
    W stored[N];
    load(from, stored);
    for (unsigned k = 0; k < N; ++k) to[k] = widened(stored[k]);
}

// Stores codes that the type of a byte has, and reads them again.
template <typename Byte, unsigned C>
__device__ __forceinline__ void store_codes(Byte* to, const float (&codes)[C]) {
    struct alignas(C) Whole {
        Byte at[C];
    } whole;
    for (unsigned c = 0; c < C; ++c) whole.at[c] = static_cast<Byte>(codes[c]);
    *reinterpret_cast<Whole*>(to) = whole;
}

template <typename Byte, unsigned C>
__device__ __forceinline__ void load_codes(const Byte* from, float (&codes)[C]) {
    Byte bytes[C];
    load(from, bytes);
    for (unsigned c = 0; c < C; ++c) codes[c] = static_cast<float>(bytes[c]);
}

// C neighbouring columns of a row: those of one thread where a row is dealt out to whole blocks,
// one row after the other. With C == 4 they share their group.
template <unsigned C>
struct Columns {
    bool inside;      // whether they exist
    unsigned row;     // theirs
    unsigned column;  // the first
    word first;       // place of the first in the matrix
    word group;       // place of their group among all groups

    __device__ __forceinline__ Columns(unsigned width, unsigned groups) {
        unsigned across = (width + blockDim.x * C - 1) / (blockDim.x * C);
        column = (blockIdx.x % across * blockDim.x + threadIdx.x) * C;
        row = blockIdx.x / across;
        inside = column < width;
        first = (word)row * width + column;
        group = (word)row * groups + column / (width / groups);
    }
};

constexpr unsigned LANES = 16;  // of half a warp

// The group of a half warp, among all groups: they are dealt out one each.
__device__ __forceinline__ word group_of_lanes() { return first_element() / LANES; }

// term(0) + ... + term(len - 1) in every lane of half a warp: lane l adds the terms of l, l + 16,
// ... in ascending order, then the lanes are added pairwise. The order, and so the bits, of the cpu
// backend's lane_sum. All threads of the warp call.
template <typename Term>
__device__ __forceinline__ float lane_sum(unsigned len, Term term) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % LANES; i < len; i += LANES) sum += term(i);
    for (unsigned distance = LANES / 2; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    return sum;
}
