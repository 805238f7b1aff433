// rtn: Eq. (Q13). Twin: ops/rtn/cpu.rs. Class: exact; with a search, up to a choice between ranges
// whose errors agree to 1e-13.
// weight [out, in] -> scale, zero_point [out, groups].
// A thread per group, see search.cuh. Reads 4 B per element once, and once more for every range
// that is tried.
// Host guarantees: weight is `groups` groups of group_size, one after the other.
#include "search.cuh"

// Places in the list of tensors that status.rs keeps.
enum Complaint { WEIGHT, SCALE };

// An unsigned grid.
struct Affine {
    float scale, zero_point, largest;

    // The weight on the grid and back, as affine_quantize and affine_dequantize have it.
    __device__ __forceinline__ float output(float w) const {
        float code = fminf(fmaxf(rintf(w / floored(scale)) + zero_point, 0.0f), largest);
        return floored(scale) * (code - zero_point);
    }
};

// How a range becomes a grid.
struct Rule {
    unsigned symmetric;
    float factor;   // of the largest magnitude, where symmetric
    float divisor;  // of the range
    float largest;  // code
    float middle;   // zero point, where symmetric

    __device__ __forceinline__ Affine grid(float low, float high) const {
        float range = symmetric ? factor * fmaxf(-low, high) : high - low;
        float scale = range / divisor;
        if (scale == 0.0f) scale = 1.0f;
        // 0 - low and not -low: a low of 0 gives the zero point 0, not -0.
        float zero_point = symmetric ? middle : rintf((0.0f - low) / floored(scale));
        return {scale, zero_point, largest};
    }
};

extern "C" __global__ void rtn(const float* weight,  // [out, in]
                               float* scale,         // [out, groups]
                               float* zero_point,    // [out, groups]
                               word groups, unsigned group_size, unsigned symmetric, float factor,
                               float divisor, float largest, float middle,
                               double p,    // of the search
                               word steps,  // ranges to try, 0 for the whole one
                               word* status, unsigned first) {
    __shared__ float chunk[GROUPS][CHUNK + 1];
    Groups all = {weight, groups, group_size, chunk};
    Rule rule = {symmetric, factor, divisor, largest, middle};
    float low = 0.0f, high = 0.0f;
    all.each([&](float w, unsigned i) {
        if (!isfinite(w)) complain(status, first + WEIGHT, all.mine() * group_size + i, w);
        low = fminf(low, w);
        high = fmaxf(high, w);
    });
    auto part = [&](word k) {
        float of = static_cast<float>(k), all_steps = static_cast<float>(steps);
        return rule.grid(of * low / all_steps, of * high / all_steps);
    };
    Affine widest = steps > 0 ? part(steps) : rule.grid(low, high);
    Affine grid = best_grid(all, widest, part, p, steps);
    if (all.mine() >= groups) return;
    if (!isfinite(widest.scale)) {
        // A narrower range that does not overflow would be no choice.
        grid = widest;
        complain(status, first + SCALE, all.mine(), widest.scale);
    }
    scale[all.mine()] = grid.scale;
    zero_point[all.mine()] = grid.zero_point;
}
