// What the interpreter's speed is measured with.
#include "kernels.cuh"

// Many instructions on registers for each access to memory.
extern "C" __global__ void iterate(const float* values,  // [len]
                                   float* output,        // [len]
                                   int len, int steps) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float x = values[i];
    for (int step = 0; step < steps; ++step) x = x * 0.75f + 0.5f;
    output[i] = x;
}

// a [rows, 64] @ b [64, columns], tiles of 16 x 16 in shared memory, 256 threads a block.
extern "C" __global__ void tiled(const float* a,  // [rows, inner]
                                 const float* b,  // [inner, columns]
                                 float* output,   // [rows, columns]
                                 int columns, int inner) {
    __shared__ float x[16][17], y[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int begin = 0; begin < inner; begin += 16) {
        x[threadIdx.y][threadIdx.x] = a[row * inner + begin + threadIdx.x];
        y[threadIdx.y][threadIdx.x] = b[(begin + threadIdx.y) * columns + column];
        __syncthreads();
        for (int k = 0; k < 16; ++k) sum = __fmaf_rn(x[threadIdx.y][k], y[k][threadIdx.x], sum);
        __syncthreads();
    }
    output[row * columns + column] = sum;
}
