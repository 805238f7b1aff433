// round_scale: Eq. (Q23). Twin: ops/round_scale/cpu.rs. Class: exact.
// Forward: scale [len] -> rounded_scale [len]. Backward: scale, d_scale [len] -> d_scale.
// One scale per thread, grid-stride. Forward reads 4 B and writes 4 B per scale and group of weights;
// backward reads 4 B and writes 4 B where a gradient stops. Some ten operations: memory decides.
// Host guarantees: smallest and largest are numbers of the rule, both normal f32 above the floor of a
// scale, so that the floor needs no look of its own.
#include "kernels.cuh"

extern "C" __global__ void round_scale(const float* scale,    // [len]
                                       float* rounded_scale,  // [len]
                                       word len, float smallest, float largest,
                                       unsigned digits,          // bits behind the leading one
                                       unsigned least_exponent,  // field of the least normal number
                                       word* status, unsigned first) {
    for (word i = first_element(); i < len; i += all_threads()) {
        float given = scale[i];
        if (!isfinite(given)) complain(status, first, i, given);
        float held = fminf(fmaxf(given, smallest), largest);
        unsigned exponent = max(__float_as_uint(held) >> 23, least_exponent);
        // Two powers of two whose product is 1, so that both products below are exact.
        float quantum = __uint_as_float((exponent - digits) << 23);
        float inverse = __uint_as_float((254 + digits - exponent) << 23);
        rounded_scale[i] = rintf(held * inverse) * quantum;
    }
}

extern "C" __global__ void round_scale_backward(const float* scale,  // [len]
                                                float* d_scale,      // [len]
                                                word len, float smallest, float largest) {
    for (word i = first_element(); i < len; i += all_threads()) {
        if (scale[i] < smallest || scale[i] > largest) d_scale[i] = 0.0f;
    }
}
