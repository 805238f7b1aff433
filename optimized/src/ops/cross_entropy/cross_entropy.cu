// cross_entropy, cross_entropy_backward: Eqs. (N7), (N7b). Twin: ops/cross_entropy/cpu.rs.
// Class: bounded. logits [tokens, vocab_size] f32, targets [tokens] i32 -> losses [tokens] f64,
// which sums_add adds; backward also replaces the logits by their gradient.
// A block per row. Forward reads 4 B per element once: the largest logit and the sum of the
// exponentials are kept together. Backward reads them again (of the L2 cache: a row is at most
// half a MiB for 128 Ki words) and writes 4 B.
// Host guarantees: targets are ignore_index or in 0..vocab_size; blocks of whole warps.
#include "kernels.cuh"

__device__ __forceinline__ float block_max(float value) {
    __shared__ float of_warp[32];
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) value = fmaxf(value, of_warp[warp]);
    return value;
}

// log(sum(exp(row))) as its two parts.
struct LogSumExp {
    float max;
    float sum;
};

// Each thread keeps the sum for the largest logit it met and rescales it when a larger one comes;
// the block then agrees on the largest of all.
template <unsigned WIDTH>
__device__ __forceinline__ LogSumExp log_sum_exp(const float* row, unsigned vocab_size) {
    // No finite logit is below, and unlike -inf it may be subtracted from itself.
    float max = -3.402823466e38f, sum = 0.0f;
    for (unsigned v = WIDTH * threadIdx.x; v < vocab_size; v += WIDTH * blockDim.x) {
        Pack<WIDTH> logits = pack<WIDTH>(row + v);
        float larger = max;
        for (unsigned i = 0; i < WIDTH; i++) larger = fmaxf(larger, logits.at[i]);
        if (larger > max) {
            sum *= expf(max - larger);
            max = larger;
        }
        for (unsigned i = 0; i < WIDTH; i++) sum += expf(logits.at[i] - max);
    }
    float largest = block_max(max);
    return {largest, block_sum(sum * expf(max - largest))};
}

// The large parts cancel before the logarithm is added. That of f32 is enough: its rounding is no
// larger than what the sum under it already carries.
__device__ __forceinline__ double loss(LogSumExp normalizer, float logit) {
    return (double)normalizer.max - (double)logit + (double)logf(normalizer.sum);
}

extern "C" __global__ void cross_entropy(const float* logits,  // [tokens, vocab_size]
                                         const int* targets,   // [tokens]
                                         double* losses,       // [tokens], 0 where not counted
                                         unsigned vocab_size, int ignore_index) {
    const float* row = logits + (word)blockIdx.x * vocab_size;
    const int target = targets[blockIdx.x];
    if (target == ignore_index) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0;
        return;
    }
    LogSumExp normalizer =
        vocab_size % 4 == 0 ? log_sum_exp<4>(row, vocab_size) : log_sum_exp<1>(row, vocab_size);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss(normalizer, row[target]);
}

template <unsigned WIDTH>
__device__ __forceinline__ void replace(float* row, unsigned vocab_size, unsigned target,
                                        float max, float factor, float gradient_multiplier) {
    for (unsigned v = WIDTH * threadIdx.x; v < vocab_size; v += WIDTH * blockDim.x) {
        Pack<WIDTH> values = pack<WIDTH>(row + v);
        for (unsigned i = 0; i < WIDTH; i++) {
            float gradient = expf(values.at[i] - max) * factor;
            values.at[i] = v + i == target ? gradient - gradient_multiplier : gradient;
        }
        store<WIDTH>(row + v, values);
    }
}

extern "C" __global__ void cross_entropy_backward(float* logits,       // [tokens, vocab_size]
                                                  const int* targets,  // [tokens]
                                                  double* losses,      // [tokens]
                                                  unsigned vocab_size, int ignore_index,
                                                  float gradient_multiplier) {
    float* row = logits + (word)blockIdx.x * vocab_size;
    const int target = targets[blockIdx.x];
    if (target == ignore_index) {
        for (unsigned v = threadIdx.x; v < vocab_size; v += blockDim.x) row[v] = 0.0f;
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0;
        return;
    }
    const bool packed = vocab_size % 4 == 0;
    LogSumExp normalizer =
        packed ? log_sum_exp<4>(row, vocab_size) : log_sum_exp<1>(row, vocab_size);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss(normalizer, row[target]);
    __syncthreads();  // the target's logit is read before its thread replaces it
    const float factor = gradient_multiplier / normalizer.sum;
    if (packed) {
        replace<4>(row, vocab_size, target, normalizer.max, factor, gradient_multiplier);
    } else {
        replace<1>(row, vocab_size, target, normalizer.max, factor, gradient_multiplier);
    }
}
