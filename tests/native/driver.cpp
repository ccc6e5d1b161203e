// Runs a library on cases from a file and says which it gets wrong: for builds that Python cannot load, those with
// sanitizers and those for another processor. Every case is in memory of exactly its size, and is searched on 1, 2 and 3
// threads by a caller that has subnormal numbers and by one that has them read and written as zero. What a training step
// does with the codes that were found is compared with the same in the plainest loops.
//
//     driver FILE INSTRUCTIONS
//
// A case is five int64 (bytes of a number, n, k, dim, outcome), z, codebook, and n int64 that are expected.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

extern "C" int vqkit_nearest_float(const char*, int, const float*, int64_t, const float*, int64_t, int64_t, int64_t*);
extern "C" int vqkit_nearest_double(const char*, int, const double*, int64_t, const double*, int64_t, int64_t, int64_t*);
extern "C" double vqkit_look_up(int, const float*, int64_t, const float*, int64_t, int64_t, const int64_t*, float*, float*);
extern "C" void vqkit_add_by_code(int, const float*, int64_t, int64_t, const int64_t*, int64_t, float*, float*);

#ifdef __SSE2__
constexpr unsigned FLUSH = 0x8040, MODES[] = {0, FLUSH};
static unsigned flags() { return _mm_getcsr() & FLUSH; }
static void set_flags(unsigned wanted) { _mm_setcsr((_mm_getcsr() & ~FLUSH) | wanted); }
#else  // the mode is of x86 as far as the library is concerned
constexpr unsigned MODES[] = {0};
static unsigned flags() { return 0; }
static void set_flags(unsigned) {}
#endif

template <class T>
static std::vector<T> read(FILE* file, int64_t size) {
  std::vector<T> values(size);
  if (std::fread(values.data(), sizeof(T), size, file) != (size_t)size) std::exit(3);
  return values;
}

static bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

static int faults_of_step(int number, const int64_t* head, const std::vector<float>& z,
                          const std::vector<float>& codebook, std::vector<int64_t> indices) {
  const int64_t n = head[1], k = head[2], dim = head[3];
  std::vector<float> z_q(n * dim), residual(n * dim), counts(k, 1), sums(k * dim, 1);
  double squares = 0;
  for (int64_t r = 0; r < n; r++) {
    counts[indices[r]] += 1;
    for (int64_t d = 0; d < dim; d++) {
      const int64_t from = indices[r] * dim + d, to = r * dim + d;
      z_q[to] = codebook[from];
      residual[to] = z[to] - codebook[from];
      sums[from] += residual[to];
      squares += (double)residual[to] * residual[to];
    }
  }
  int faults = 0;
  for (int threads = 1; threads <= 3; threads++) {
    std::vector<float> codes(n * dim, 7), rest(n * dim, 7), counted(k, 1), summed(k * dim, 1), alone(k * dim, 1);
    const double found =
        vqkit_look_up(threads, z.data(), n, codebook.data(), k, dim, indices.data(), codes.data(), rest.data());
    vqkit_add_by_code(threads, rest.data(), n, dim, indices.data(), k, counted.data(), summed.data());
    vqkit_add_by_code(threads, rest.data(), n, dim, indices.data(), k, nullptr, alone.data());
    const bool near = found > 1e38 || (found >= squares * (1 - 1e-5) - 1e-36 && found <= squares * (1 + 1e-5) + 1e-36);
    if (near && same(codes, z_q) && same(rest, residual) && same(counted, counts) && same(summed, sums) &&
        same(alone, sums))
      continue;
    std::printf("case %d, %d threads: another step\n", number, threads);
    faults++;
  }
  for (int64_t outside : {(int64_t)-1, k}) {
    indices[n - 1] = outside;
    if (vqkit_look_up(1, z.data(), n, codebook.data(), k, dim, indices.data(), z_q.data(), residual.data()) < 0) continue;
    std::printf("case %d, index %lld: looked up\n", number, (long long)outside);
    faults++;
  }
  return faults;
}

static int faults_of_step(int, const int64_t*, const std::vector<double>&, const std::vector<double>&,
                          const std::vector<int64_t>&) {
  return 0;  // the step is of float32
}

template <class T, class Search>
static int faults_of(FILE* file, const char* instructions, int number, const int64_t* head, Search search) {
  const int64_t n = head[1], k = head[2], dim = head[3], outcome = head[4];
  const std::vector<T> z = read<T>(file, n * dim), codebook = read<T>(file, k * dim);
  const std::vector<int64_t> expected = read<int64_t>(file, n);
  int faults = 0;
  for (int threads = 1; threads <= 3; threads++)
    for (unsigned wanted : MODES) {
      std::vector<int64_t> indices(n, -7);
      set_flags(wanted);
      const int got = search(instructions, threads, z.data(), n, codebook.data(), k, dim, indices.data());
      const bool kept = flags() == wanted;
      set_flags(0);
      if (kept && got == outcome && (outcome || indices == expected)) continue;
      std::printf("case %d, %d threads, flags %x%s: outcome %d\n", number, threads, wanted, kept ? "" : " not kept", got);
      faults++;
    }
  return faults + (outcome ? 0 : faults_of_step(number, head, z, codebook, expected));
}

int main(int, char** argv) {
  FILE* const file = std::fopen(argv[1], "rb");
  if (!file) return 2;
  int64_t head[5];
  int faults = 0, number = 0;
  for (; std::fread(head, sizeof head, 1, file) == 1; number++)
    faults += head[0] == sizeof(float) ? faults_of<float>(file, argv[2], number, head, vqkit_nearest_float)
                                       : faults_of<double>(file, argv[2], number, head, vqkit_nearest_double);
  std::fclose(file);
  std::printf("%d cases, %d faults\n", number, faults);
  return faults != 0;
}
