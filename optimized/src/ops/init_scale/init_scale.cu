// init_scale: Eq. (Q8). Twin: ops/init_scale/cpu.rs. Class: exact; under the rule lp, up to
// a choice between ranges whose errors agree to 1e-13.
// weight [out, in] -> scale, offset [out, groups].
// One thread per group, because its sums run in ascending order; a block's 128 groups come through
// shared memory 32 weights at a time, so that a warp reads a line. Reads 4 B per element once; twice
// for lsq_plus, 1 + steps times for lp.
// Host guarantees: weight is `groups` groups of group_size, one after the other.
#include "search.cuh"

// As cuda.rs numbers them; absmax is the rules that divide the largest magnitude by a constant.
enum Rule { L4Q, LSQ, LSQ_PLUS, ABSMAX, ASYMMETRIC, LP };

// A symmetric grid, as fake_quantize uses it.
struct Symmetric {
    float scale, qmin, qmax;

    __device__ __forceinline__ float output(float w) const {
        float used = floored(scale);
        return rintf(fminf(fmaxf(w / used, qmin), qmax)) * used;
    }
};

// The first of the ranges k * absmax / steps with the least error.
__device__ float best_range(const Groups& all, float absmax, float qmin, float qmax, double p,       // of the rule lp
                            word steps) {
    auto part = [&](word k) {
        float scale = static_cast<float>(k) * absmax / static_cast<float>(steps) / qmax;
        return Symmetric{scale, qmin, qmax};
    };
    return best_grid(all, Symmetric{0.0f, qmin, qmax}, part, p, steps).scale;
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
                                      double p,       // of the rule lp
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
        case LP: s = best_range(all, absmax, qmin, qmax, p, steps); break;
    }
    if (s == 0.0f) s = 1.0f, o = rule == ASYMMETRIC ? max : 0.0f;  // code 0 is the group
    if (all.mine() < groups) {
        scale[all.mine()] = s;
        offset[all.mine()] = o;
    }
}
