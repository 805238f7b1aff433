// rope, rope_backward: Eqs. (N3), (N3b). Twin: ops/rope/cpu.rs. Class: exact.
// x [batch * length, heads, head_dim] f32, in place; cosine, sine [positions, head_dim / 2] f32.
// A block per token; a thread turns pairs of one head, four neighbouring ones where head_dim is a
// multiple of 8. Reads 4 B and writes 4 B per element; the tables' rows stay in the caches.
// Host guarantees: first_position + length <= positions; no document begins after its token.
#include "kernels.cuh"

template <unsigned WIDTH>
__device__ __forceinline__ void turn(const float* cosine, const float* sine, float* x,
                                     unsigned heads, unsigned head_dim, float direction) {
    const unsigned half = head_dim / 2;
    for (unsigned pair = WIDTH * threadIdx.x; pair < heads * half; pair += WIDTH * blockDim.x) {
        const unsigned head = pair / half, i = pair % half;
        float* first = x + head * head_dim + i;
        float* second = first + half;
        Pack<WIDTH> c = pack<WIDTH>(cosine + i), s = pack<WIDTH>(sine + i);
        Pack<WIDTH> a = pack<WIDTH>(first), b = pack<WIDTH>(second), turned_a, turned_b;
        for (unsigned k = 0; k < WIDTH; k++) {
            float to_b = direction * s.at[k];
            turned_a.at[k] = a.at[k] * c.at[k] - b.at[k] * to_b;
            turned_b.at[k] = b.at[k] * c.at[k] + a.at[k] * to_b;
        }
        store<WIDTH>(first, turned_a);
        store<WIDTH>(second, turned_b);
    }
}

extern "C" __global__ void rope(const float* cosine,  // [positions, head_dim / 2]
                                const float* sine,    // [positions, head_dim / 2]
                                float* x,             // [batch * length, heads, head_dim]
                                unsigned length, unsigned heads, unsigned head_dim,
                                unsigned first_position,
                                float direction,       // 1, or -1 for the backward
                                const int* documents,  // [batch * length], where each begins
                                unsigned packed) {     // else they are nothing
    const unsigned start = packed ? documents[blockIdx.x] : 0;
    const word row = (word)(first_position + blockIdx.x % length - start) * (head_dim / 2);
    x += (word)blockIdx.x * heads * head_dim;
    if (head_dim % 8 == 0) {
        turn<4>(cosine + row, sine + row, x, heads, head_dim, direction);
    } else {
        turn<1>(cosine + row, sine + row, x, heads, head_dim, direction);
    }
}
