// rms_norm, rms_norm_backward: Eqs. (N2), (N2b). Twin: ops/rms_norm/cpu.rs. Class: bounded.
// x, output, d_output, d_x [tokens, hidden], weight, d_weight [hidden], inverse_rms [tokens], f32.
// A block per row, sums as trees over the block. Floor 8 B per element and 12 B backward: the
// second reading of a row is of the L1 cache. A weight that is trained adds 8 B per element.
// Host guarantees: blocks of whole warps.
#include "kernels.cuh"

template <unsigned WIDTH>
__device__ __forceinline__ void forward_row(const float* x, const float* weight, float* output,
                                            float* inverse_rms, unsigned hidden, float eps) {
    const unsigned first = WIDTH * threadIdx.x, step = WIDTH * blockDim.x;
    float sum = 0.0f;
    for (unsigned h = first; h < hidden; h += step) {
        Pack<WIDTH> a = pack<WIDTH>(x + h);
        for (unsigned i = 0; i < WIDTH; i++) sum += a.at[i] * a.at[i];
    }
    float inverse = 1.0f / sqrtf(block_sum(sum) / (float)hidden + eps);
    if (threadIdx.x == 0) *inverse_rms = inverse;
    for (unsigned h = first; h < hidden; h += step) {
        Pack<WIDTH> a = pack<WIDTH>(x + h), w = pack<WIDTH>(weight + h), y;
        for (unsigned i = 0; i < WIDTH; i++) y.at[i] = a.at[i] * inverse * w.at[i];
        store<WIDTH>(output + h, y);
    }
}

extern "C" __global__ void rms_norm(const float* x,       // [tokens, hidden]
                                    const float* weight,  // [hidden]
                                    float* output,        // [tokens, hidden]
                                    float* inverse_rms,   // [tokens]
                                    unsigned hidden, float eps) {
    const word row = (word)blockIdx.x * hidden;
    if (hidden % 4 == 0) {
        forward_row<4>(x + row, weight, output + row, inverse_rms + blockIdx.x, hidden, eps);
    } else {
        forward_row<1>(x + row, weight, output + row, inverse_rms + blockIdx.x, hidden, eps);
    }
}

template <unsigned WIDTH>
__device__ __forceinline__ void backward_row(const float* x, const float* weight, float inverse,
                                             const float* d_output, float* d_x, unsigned hidden,
                                             unsigned add) {
    const unsigned first = WIDTH * threadIdx.x, step = WIDTH * blockDim.x;
    float sum = 0.0f;
    for (unsigned h = first; h < hidden; h += step) {
        Pack<WIDTH> a = pack<WIDTH>(x + h), w = pack<WIDTH>(weight + h);
        Pack<WIDTH> d_y = pack<WIDTH>(d_output + h);
        for (unsigned i = 0; i < WIDTH; i++) {
            sum += d_y.at[i] * w.at[i] * (a.at[i] * inverse);
        }
    }
    float mean = block_sum(sum) / (float)hidden;
    for (unsigned h = first; h < hidden; h += step) {
        Pack<WIDTH> a = pack<WIDTH>(x + h), w = pack<WIDTH>(weight + h);
        Pack<WIDTH> d_y = pack<WIDTH>(d_output + h), old = {}, result;
        if (add) old = pack<WIDTH>(d_x + h);
        for (unsigned i = 0; i < WIDTH; i++) {
            float gradient = inverse * (d_y.at[i] * w.at[i] - a.at[i] * inverse * mean);
            result.at[i] = add ? old.at[i] + gradient : gradient;
        }
        store<WIDTH>(d_x + h, result);
    }
}

extern "C" __global__ void rms_norm_backward(const float* x,            // [tokens, hidden]
                                             const float* weight,       // [hidden]
                                             const float* inverse_rms,  // [tokens]
                                             const float* d_output,     // [tokens, hidden]
                                             float* d_x,                // [tokens, hidden]
                                             unsigned hidden,
                                             unsigned add) {  // 1: d_x is added to
    const word row = (word)blockIdx.x * hidden;
    const float inverse = inverse_rms[blockIdx.x];
    if (hidden % 4 == 0) {
        backward_row<4>(x + row, weight, inverse, d_output + row, d_x + row, hidden, add);
    } else {
        backward_row<1>(x + row, weight, inverse, d_output + row, d_x + row, hidden, add);
    }
}

// Tokens of one partial sum of d_weight; the host and the twin have the same number.
const unsigned SLAB = 32;

// A thread per column, a slab of tokens per blockIdx.x: each warp reads 128 B of a row at once.
extern "C" __global__ void rms_norm_d_weight_partial(const float* x,            // [tokens, hidden]
                                                     const float* inverse_rms,  // [tokens]
                                                     const float* d_output,     // [tokens, hidden]
                                                     float* partial,            // [slabs, hidden]
                                                     unsigned tokens, unsigned hidden) {
    const unsigned h = blockIdx.y * blockDim.x + threadIdx.x;
    if (h >= hidden) return;
    const unsigned first = blockIdx.x * SLAB, end = min(first + SLAB, tokens);
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned t = first; t < end; t++) {
        word i = (word)t * hidden + h;
        sum += d_output[i] * (x[i] * inverse_rms[t]);
    }
    partial[(word)blockIdx.x * hidden + h] = sum;
}

// A thread per column; the slabs in ascending order, as the twin adds them.
extern "C" __global__ void rms_norm_d_weight(const float* partial,  // [slabs, hidden]
                                             float* d_weight,       // [hidden]
                                             unsigned slabs, unsigned hidden) {
    const unsigned h = blockIdx.x * blockDim.x + threadIdx.x;
    if (h >= hidden) return;
    float sum = d_weight[h];
#pragma unroll 4
    for (unsigned slab = 0; slab < slabs; slab++) sum += partial[(word)slab * hidden + h];
    d_weight[h] = sum;
}
