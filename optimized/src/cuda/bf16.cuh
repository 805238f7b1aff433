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

// Two values for a register of a product, the first in its lower half.
__device__ __forceinline__ unsigned rounded_pair(float low, float high) {
    unsigned result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return (unsigned)__cvta_generic_to_shared(at);
}

// Four matrices of 8 by 8 values; lane l gives the address of row l % 8 of matrix l / 8. Every lane
// gets two neighbours of row lane / 4 of each matrix; of its columns where it is turned.
__device__ __forceinline__ void load_straight(unsigned (&to)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_turned(unsigned (&to)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sum[16, 8] += a[16, 16] @ b[16, 8]
__device__ __forceinline__ void add_product(float (&sum)[4], const unsigned (&a)[4], unsigned b_low,
                                            unsigned b_high) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}
