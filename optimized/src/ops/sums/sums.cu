// sums_add, sums_clip: sums in f64 that stay on the device. Twin: ops/sums/cpu.rs. Class: exact.
// terms [count] -> sums[slot], written or added to; sums [losses + tensors + 2], of which the last
// two are written: the global norm and the factor on every gradient.
// One block: its threads fetch, one thread adds, so the order is that of the terms. Reads 8 B per
// term; a step has a few thousand.
// Host guarantees: a block of THREADS threads; terms do not lie among the sums.
#include "kernels.cuh"

constexpr unsigned THREADS = 256;  // cuda.rs has it too
constexpr word CLEAN = ~0ull;      // no complaint: plumbline::cuda::status has it too

// The sum of the terms in their order, in thread 0. Every thread calls.
__device__ __forceinline__ double in_order(const double* terms, unsigned count) {
    __shared__ double fetched[THREADS];
    double sum = 0.0;
    for (unsigned start = 0; start < count; start += THREADS) {
        unsigned here = min(THREADS, count - start);
        __syncthreads();  // the terms before these are added
        if (threadIdx.x < here) fetched[threadIdx.x] = terms[start + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (unsigned i = 0; i < here; i++) sum += fetched[i];
        }
    }
    return sum;
}

extern "C" __global__ void sums_add(const double* terms,  // [count]
                                    double* sums,
                                    unsigned count, unsigned slot,
                                    unsigned add)  // to what the slot holds
{
    double sum = in_order(terms, count);
    if (threadIdx.x == 0) sums[slot] = add ? sums[slot] + sum : sum;
}

extern "C" __global__ void sums_clip(double* sums,        // [losses | squares | norm, factor]
                                     const word* status,  // [1], what kernels complained of
                                     unsigned losses, unsigned tensors,
                                     double max_norm)  // 0: no limit
{
    double loss = in_order(sums, losses);
    double norm = sqrt(in_order(sums + losses, tensors));
    if (threadIdx.x != 0) return;
    double factor = max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0;
    bool is_sound = isfinite(loss) && isfinite(norm) && *status == CLEAN;
    sums[losses + tensors] = norm;
    sums[losses + tensors + 1] = is_sound ? factor : __longlong_as_double(0x7ff8000000000000ll);
}
