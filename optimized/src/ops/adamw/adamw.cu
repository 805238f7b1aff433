// adamw: Eq. (T1), every tensor in one launch. Twin: ops/adamw/cpu.rs. Class: exact.
// tensors: for each its gradient [len], parameter, first_moment, second_moment [len], updated.
// A block takes CHUNK elements of one tensor, four per thread and turn. Reads 16 B and writes 12 B
// per element, of moments in bf16 12 B and 8 B.
// A factor that is not finite leaves every tensor as it is: the host has not waited to see whether
// the gradient is fit to be used.
// Host guarantees: what depends on the step and the tensor alone is computed in f64 and rounded
// once; a block for every chunk; rates in the order of the tensors, first_chunk ascending.
#include "kernels.cuh"

const unsigned CHUNK = 1 << 13;  // as ops/adamw/cuda.rs has it; a multiple of 4

template <typename Kept>
struct Tensor {
    float* parameter;
    const float* gradient;
    Kept* first_moment;
    Kept* second_moment;
};

struct Rates {
    word len;
    word key;              // of the words that its moments are rounded by
    unsigned first_chunk;  // the first block that is its own
    float keep;            // 1 - lr * weight_decay
    float rate;            // lr / (1 - beta1^step)
    float correction;      // sqrt(1 - beta2^step)
};

// Four neighbours of a moment as it is kept, at an address that one instruction can use.
template <typename Kept>
struct alignas(4 * sizeof(Kept)) Four {
    Kept at[4];
};

struct Step {
    float multiplier, keep, rate, correction, eps, old1, new1, old2, new2;
    word key;

    __device__ __forceinline__ void take(float& p, float g, float& m, float& v, word) const {
        g = g * multiplier;
        m = old1 * m + new1 * g;
        v = old2 * v + new2 * (g * g);
        p = p * keep - rate * m / (sqrtf(v) / correction + eps);
    }

    // The bits of a bf16: its value has zeros below them. Kept away from zero with the probability
    // that the lower half's share of its range is.
    __device__ __forceinline__ void take(float& p, float g, unsigned short& m, unsigned short& v,
                                         word place) const {
        float wide_m = __uint_as_float((unsigned)m << 16);
        float wide_v = __uint_as_float((unsigned)v << 16);
        take(p, g, wide_m, wide_v, place);
        unsigned random = (unsigned)random_word(key, place);
        m = (unsigned short)((__float_as_uint(wide_m) + (random & 0xffff)) >> 16);
        v = (unsigned short)((__float_as_uint(wide_v) + (random >> 16)) >> 16);
    }
};

// The last tensor whose first chunk is not behind this block; an empty one has no block.
__device__ __forceinline__ unsigned own_tensor(const Rates* rates, unsigned count) {
    unsigned begin = 0, end = count;
    while (end - begin > 1) {
        unsigned middle = (begin + end) / 2;
        if (rates[middle].first_chunk <= blockIdx.x) {
            begin = middle;
        } else {
            end = middle;
        }
    }
    return begin;
}

template <typename Kept>
__device__ __forceinline__ void update(const Tensor<Kept>* tensors, const Rates* rates,
                                       unsigned count, Step step) {
    const unsigned own = own_tensor(rates, count);
    const Tensor<Kept> tensor = tensors[own];
    step.keep = rates[own].keep;
    step.rate = rates[own].rate;
    step.correction = rates[own].correction;
    step.key = rates[own].key;
    const word len = rates[own].len;
    const word begin = (word)(blockIdx.x - rates[own].first_chunk) * CHUNK;
    const word end = begin + CHUNK < len ? begin + CHUNK : len;
    for (word i = begin / 4 + threadIdx.x; i < end / 4; i += blockDim.x) {
        Pack<4> p = pack<4>(tensor.parameter + 4 * i);
        const Pack<4> g = pack<4>(tensor.gradient + 4 * i);
        Four<Kept> m = reinterpret_cast<const Four<Kept>*>(tensor.first_moment)[i];
        Four<Kept> v = reinterpret_cast<const Four<Kept>*>(tensor.second_moment)[i];
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) step.take(p.at[j], g.at[j], m.at[j], v.at[j], 4 * i + j);
        store(tensor.parameter + 4 * i, p);
        reinterpret_cast<Four<Kept>*>(tensor.first_moment)[i] = m;
        reinterpret_cast<Four<Kept>*>(tensor.second_moment)[i] = v;
    }
    for (word i = end / 4 * 4 + threadIdx.x; i < end; i += blockDim.x) {
        step.take(tensor.parameter[i], tensor.gradient[i], tensor.first_moment[i],
                  tensor.second_moment[i], i);
    }
}

extern "C" __global__ void adamw_f32(const Tensor<float>* tensors,  // [count]
                                     const Rates* rates,            // [count]
                                     unsigned count, const double* sums,
                                     unsigned slot,  // in sums: the factor on the gradient
                                     float eps,
                                     float old1,  // beta1
                                     float new1,  // 1 - beta1
                                     float old2,  // beta2
                                     float new2)  // 1 - beta2
{
    const float multiplier = (float)sums[slot];
    if (!isfinite(multiplier)) return;
    update(tensors, rates, count, {multiplier, 0, 0, 0, eps, old1, new1, old2, new2, 0});
}

// The same with moments in bf16.
extern "C" __global__ void adamw_bf16(const Tensor<unsigned short>* tensors,  // [count]
                                      const Rates* rates,                     // [count]
                                      unsigned count, const double* sums, unsigned slot,
                                      float eps, float old1, float new1, float old2,
                                      float new2) {
    const float multiplier = (float)sums[slot];
    if (!isfinite(multiplier)) return;
    update(tensors, rates, count, {multiplier, 0, 0, 0, eps, old1, new1, old2, new2, 0});
}
