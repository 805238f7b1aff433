// embedding, embedding_backward: Eqs. (N6), (N6b). Twin: ops/embedding/cpu.rs. Class: exact.
// tokens [tokens], table [vocab_size, hidden] -> output [tokens, hidden].
// A block per token; reads 4 B and writes 4 B per element.
// d_output [tokens, hidden] -> d_table [vocab_size, hidden], added to.
// A block per row that occurs and 256 columns; a thread adds its column's gradients in ascending
// order of the positions. Reads 4 B per element, and 8 B per element of a row that occurs.
// Host guarantees: every token is a row of the table.
#include "kernels.cuh"

extern "C" __global__ void embedding(const int* tokens,   // [tokens]
                                     const float* table,  // [vocab_size, hidden]
                                     float* output,       // [tokens, hidden]
                                     unsigned hidden) {
    const float* row = table + (word)tokens[blockIdx.x] * hidden;
    for (unsigned i = threadIdx.x; i < hidden; i += blockDim.x) {
        output[(word)blockIdx.x * hidden + i] = row[i];
    }
}

extern "C" __global__ void embedding_backward(const int* tokens,  // [count]
                                              const int* order,   // positions [count] by token,
                                                                  // starts [rows + 1] in positions
                                              const float* d_output,  // [count, hidden]
                                              float* d_table,         // [vocab_size, hidden]
                                              unsigned count,         // of tokens
                                              unsigned hidden) {
    unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= hidden) return;
    const int *positions = order, *starts = order + count;
    int start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    word at = (word)tokens[positions[start]] * hidden + i;
    float sum = d_table[at];
    for (int k = start; k < end; ++k) sum += d_output[(word)positions[k] * hidden + i];
    d_table[at] = sum;
}
