// adamw: Eq. (T1). Twin: ops/adamw/cpu.rs. Class: exact.
// gradient [len], parameter, first_moment, second_moment [len], updated.
// Four elements per thread, grid-stride. Reads 16 B and writes 12 B per element.
// A factor that is not finite leaves every tensor as it is: the host has not waited to see whether
// the gradient is fit to be used.
// Host guarantees: what depends on the step alone is computed in f64 and rounded once.
#include "kernels.cuh"

struct Step {
    float multiplier, keep, rate, correction, eps, old1, new1, old2, new2;

    __device__ __forceinline__ void take(float& p, float g, float& m, float& v) const {
        g = g * multiplier;
        m = old1 * m + new1 * g;
        v = old2 * v + new2 * (g * g);
        p = p * keep - rate * m / (sqrtf(v) / correction + eps);
    }
};

extern "C" __global__ void adamw(float* parameter,       // [len]
                                 const float* gradient,  // [len]
                                 float* first_moment,    // [len]
                                 float* second_moment,   // [len]
                                 const double* sums,
                                 unsigned slot,  // in sums: the factor on the gradient
                                 word len,
                                 float keep,        // 1 - lr * weight_decay
                                 float rate,        // lr / (1 - beta1^step)
                                 float correction,  // sqrt(1 - beta2^step)
                                 float eps,
                                 float old1,  // beta1
                                 float new1,  // 1 - beta1
                                 float old2,  // beta2
                                 float new2)  // 1 - beta2
{
    const float multiplier = (float)sums[slot];
    if (!isfinite(multiplier)) return;
    Step step = {multiplier, keep, rate, correction, eps, old1, new1, old2, new2};
    for (word i = first_element(); i < len / 4; i += all_threads()) {
        float4 p = reinterpret_cast<float4*>(parameter)[i];
        float4 g = reinterpret_cast<const float4*>(gradient)[i];
        float4 m = reinterpret_cast<float4*>(first_moment)[i];
        float4 v = reinterpret_cast<float4*>(second_moment)[i];
        step.take(p.x, g.x, m.x, v.x);
        step.take(p.y, g.y, m.y, v.y);
        step.take(p.z, g.z, m.z, v.z);
        step.take(p.w, g.w, m.w, v.w);
        reinterpret_cast<float4*>(parameter)[i] = p;
        reinterpret_cast<float4*>(first_moment)[i] = m;
        reinterpret_cast<float4*>(second_moment)[i] = v;
    }
    for (word i = len / 4 * 4 + first_element(); i < len; i += all_threads()) {
        step.take(parameter[i], gradient[i], first_moment[i], second_moment[i]);
    }
}
