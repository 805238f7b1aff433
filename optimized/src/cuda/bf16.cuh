// The 16-bit floats: bf16, the upper half of an f32, which products are computed on and weights
// stored in; f16, which weights are stored in.
#pragma once

struct bf16 {
    unsigned short bits;
};

struct f16 {
    unsigned short bits;
};

// To the nearest, ties to even; beyond the largest it is infinite.
template <typename T>
__device__ __forceinline__ T rounded(float value);

template <>
__device__ __forceinline__ float rounded<float>(float value) {
    return value;
}

template <>
__device__ __forceinline__ bf16 rounded<bf16>(float value) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

__device__ __forceinline__ float widened(float value) { return value; }

__device__ __forceinline__ float widened(bf16 value) {
    return __uint_as_float((unsigned)value.bits << 16);
}

__device__ __forceinline__ float widened(f16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

// N neighbours, at once where there are four of them, aligned to 8 bytes.
template <unsigned N>
__device__ __forceinline__ void store(bf16* to, const bf16 (&from)[N]) {
    if constexpr (N == 4) {
        *reinterpret_cast<ushort4*>(to) =
            make_ushort4(from[0].bits, from[1].bits, from[2].bits, from[3].bits);
    } else {
        for (unsigned k = 0; k < N; ++k) to[k] = from[k];
    }
}
