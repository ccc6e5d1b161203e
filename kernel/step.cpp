// What a training step does beside its search, each in one pass over the vectors: the codes, the residual and its
// squares; counts and sums of residuals for each code. What comes out depends on no thread count.
#include <cstdint>
#include <vector>

#include "threads.h"

namespace {

constexpr int64_t BLOCK = 1024, LANES = 16;

// One vector: z_q = e, residual = z - e. Gives |residual|^2.
float one(const float* z, const float* e, int64_t dim, float* z_q, float* residual) {
  float squares[LANES] = {};
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES)
    for (int64_t i = 0; i < LANES; i++) {
      const float r = z[d + i] - e[d + i];
      z_q[d + i] = e[d + i];
      residual[d + i] = r;
      squares[i] += r * r;
    }
  for (; d < dim; d++) {
    const float r = z[d] - e[d];
    z_q[d] = e[d];
    residual[d] = r;
    squares[d % LANES] += r * r;
  }
  float sum = 0;
  for (int64_t i = 0; i < LANES; i++) sum += squares[i];
  return sum;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Gives the sum of squares; less than nothing where an index is out of range.
EXPORT double vqkit_look_up(int threads, const float* z, int64_t n, const float* codebook, int64_t k, int64_t dim,
                            const int64_t* indices, float* z_q, float* residual) {
  for (int64_t r = 0; r < n; r++)
    if (indices[r] < 0 || indices[r] >= k) return -1;
  threads = vqkit::usable(threads);
  const int64_t blocks = (n + BLOCK - 1) / BLOCK;
  std::vector<double> squares(blocks);
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t block = 0; block < blocks; block++) {
    double sum = 0;
    for (int64_t r = block * BLOCK; r < n && r < (block + 1) * BLOCK; r++)
      sum += one(z + r * dim, codebook + indices[r] * dim, dim, z_q + r * dim, residual + r * dim);
    squares[block] = sum;
  }
  double sum = 0;
  for (double square : squares) sum += square;
  return sum;
}

// Adds to counts (K,) and to sums (K, D), or to the one that is not null. Each thread has codes of its own and looks at
// all indices, so that each sum is taken in the order of the vectors.
EXPORT void vqkit_add_by_code(int threads, const float* residual, int64_t n, int64_t dim, const int64_t* indices,
                              int64_t codes, float* counts, float* sums) {
  threads = n * dim < 1 << 16 ? 1 : vqkit::usable(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; t++) {
    const int64_t begin = codes * t / threads, end = codes * (t + 1) / threads;
    for (int64_t r = 0; r < n; r++) {
      const int64_t k = indices[r];
      if (k < begin || k >= end) continue;
      if (counts) counts[k] += 1;
      if (!sums) continue;
      float* const to = sums + k * dim;
      const float* const from = residual + r * dim;
      for (int64_t d = 0; d < dim; d++) to[d] += from[d];
    }
  }
}
