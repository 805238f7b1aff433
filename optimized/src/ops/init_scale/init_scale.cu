// init_scale: Eq. (Q8). Twin: ops/init_scale/cpu.rs. Class: exact; under the rule lp, up to
// a choice between ranges whose errors agree to 1e-13.
// weight [out, in] -> scale, offset [out, groups].
// One thread per group, because its sums run in ascending order; a block's 128 groups come through
// shared memory 32 weights at a time, so that a warp reads a line. Reads 4 B per element once; twice
// for lsq_plus, 1 + steps times for lp.
// Host guarantees: weight is `groups` groups of group_size, one after the other.
#include "kernels.cuh"

constexpr unsigned GROUPS = 128;  // of a block, and its threads
constexpr unsigned CHUNK = 32;    // weights of a group in shared memory
constexpr float SCALE_FLOOR = 1e-8f;


// As cuda.rs numbers them; absmax is the rules that divide the largest magnitude by a constant.
enum Rule { L4Q, LSQ, LSQ_PLUS, ABSMAX, ASYMMETRIC, LP };

struct Groups {
    const float* weight;
    word groups;
    unsigned group_size;
    float (*chunk)[CHUNK + 1];  // one more spreads a column over the banks

    __device__ __forceinline__ word mine() const { return first_element(); }

    // Calls visit(w, i) for each weight of the thread's group in ascending order. Every thread of
    // the block must come here.
    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const {
        word first = (word)blockIdx.x * GROUPS;
        for (unsigned start = 0; start < group_size; start += CHUNK) {
            unsigned count = min(CHUNK, group_size - start);
            __syncthreads();  // every thread is done with the chunk before
            for (unsigned e = threadIdx.x; e < GROUPS * CHUNK; e += GROUPS) {
                word group = first + e / CHUNK;
                if (group < groups && e % CHUNK < count) {
                    chunk[e / CHUNK][e % CHUNK] = weight[group * group_size + start + e % CHUNK];
                }
            }
            __syncthreads();  // the chunk is there
            if (mine() < groups) {
#pragma unroll 1
                for (unsigned c = 0; c < count; ++c) visit(chunk[threadIdx.x][c], start + c);
            }
        }
    }
};

// x^p of x >= 0. To a whole power up to 4 the nearest double, because x comes from a float and its
// square is exact; else within some 1e-14, which can matter only between ranges that are as good.
__device__ __forceinline__ double power(double x, double p) {
    if (p == 1.0) return x;
    if (p == 2.0) return x * x;
    if (p == 3.0) return x * x * x;
    if (p == 4.0) return (x * x) * (x * x);
    return x == 0.0 ? 0.0 : exp2(p * log2(x));
}

// sum |w - fake_quantize(w)|^p, in f64 so that close ranges are told apart.
__device__ double error_of(const Groups& all, float scale, float qmin, float qmax, double p) {
    float used = scale < SCALE_FLOOR ? SCALE_FLOOR : scale;
    double error = 0.0;
    all.each([&](float w, unsigned) {
        float y = rintf(fminf(fmaxf(w / used, qmin), qmax)) * used;
        error += power(fabsf(w - y), p);
    });
    return error;
}

// The first of the ranges k * absmax / steps with the least error.
__device__ float best_range(const Groups& all, float absmax, float qmin, float qmax, double p,
                            word steps) {
    double least = __longlong_as_double(0x7ff0000000000000);
    float best = 0.0f;
    for (word k = 1; k <= steps; ++k) {
        float scale = static_cast<float>(k) * absmax / static_cast<float>(steps) / qmax;
        double error = error_of(all, scale, qmin, qmax, p);
        if (error < least) least = error, best = scale;
    }
    return best;
}

__device__ float reach(const Groups& all, float mean) {
    float squares = 0.0f;
    all.each([&](float w, unsigned) { squares += (w - mean) * (w - mean); });
    float count = static_cast<float>(all.group_size - 1);
    float sigma = all.group_size == 1 ? 0.0f : sqrtf(squares / count);
    return fmaxf(fabsf(mean - 3.0f * sigma), fabsf(mean + 3.0f * sigma));
}

extern "C" __global__ void init_scale(const float* weight,  // [out, in]
                                      float* scale,         // [out, groups]
                                      float* offset,        // [out, groups]
                                      word groups, unsigned group_size, float qmin, float qmax,
                                      unsigned rule,
                                      float divisor,  // of absmax
                                      word p,         // bits of a double
                                      word steps, word* status, unsigned first) {
    __shared__ float chunk[GROUPS][CHUNK + 1];
    Groups all = {weight, groups, group_size, chunk};
    float min = __int_as_float(0x7f800000), max = -min, sum = 0.0f, sum_abs = 0.0f;
    all.each([&](float w, unsigned i) {
        if (!isfinite(w)) complain(status, first, all.mine() * group_size + i, w);
        // The first of equal ones stays: a zero keeps its sign.
        min = w < min ? w : min;
        max = w > max ? w : max;
        sum += w;
        sum_abs += fabsf(w);
    });
    float absmax = fmaxf(fabsf(max), fabsf(min)), count = static_cast<float>(group_size);
    float s = 0.0f, o = 0.0f;
    switch (rule) {
        case L4Q: s = fmaxf(fabsf(min / qmin), fabsf(max / qmax)); break;
        case LSQ: s = 2.0f * (sum_abs / count) / sqrtf(qmax); break;
        case LSQ_PLUS: s = reach(all, sum / count) / -qmin; break;
        case ABSMAX: s = absmax / divisor; break;
        case ASYMMETRIC: s = (max - min) / (qmax - qmin), o = max - s * qmax; break;
        case LP: s = best_range(all, absmax, qmin, qmax, __longlong_as_double(p), steps); break;
    }
    if (s == 0.0f) s = 1.0f, o = rule == ASYMMETRIC ? max : 0.0f;  // code 0 is the group
    if (all.mine() < groups) {
        scale[all.mine()] = s;
        offset[all.mine()] = o;
    }
}
