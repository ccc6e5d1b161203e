// The nearest code of every vector, as the definition in float64 has it: where a part of the answer is decided.
//
// A scan (tiles.h) scores every code,  s_k = (x - c).(e_k - c) - |e_k - c|^2/2,  which orders codes as the distance
// does; c is some point among the codes, so that data far from the origin lose nothing. With u the unit roundoff of T,
// centring (2 u for both sides), D products with their sum ((D + 1) u of all that is added, |e_k|^2/2 among it) and
// |e_k|^2 itself (four sums of a quarter each, (D/4 + 4) u) together err by less than  A (|x||e_k| + |e_k|^2/2)  with
// A = 1.4 (D + 16) u (Higham 2002, section 3.1), and the definition's own sum by less than  B (|x|^2 + |e_k|^2)  with
// B = 1.4 (D + 16) u64. As  |x||e| <= (t |x|^2 + |e|^2/t) / 2  for any t > 0, the error is below
//     alpha |e_k|^2 + beta |x|^2,   alpha = A/2t + A/2 + B,   beta = A t/2 + B,
// whose first part belongs to a code and costs nothing in the scan; t is about |e|/|x|. One code far away widens
// nobody's bound but its own. A vector whose best code beats every other by more than both errors is settled. Of the
// others the codes that remain possible are compared by the definition; where these are many, after a scan in float64.
//
// This file is compiled without contraction: a fused multiply-add would round the definition's sum otherwise.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "scan.h"
#include "threads.h"
#ifdef _OPENMP
#include <pthread.h>
#endif
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#ifdef __FAST_MATH__
#error "-ffast-math would round otherwise than the bounds say, and make the whole process flush subnormal numbers"
#endif
static_assert(FLT_EVAL_METHOD == 0, "float and double must be rounded to themselves");

namespace vqkit {

// A forked child has one thread, but OpenMP, which remembers more, would wait for them for ever.
static bool forked = false;
#ifdef _OPENMP
static const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

int usable(int threads) { return forked || threads < 1 ? 1 : threads; }

template <class S>
double sum_in_order(const S* z, const S* e, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; d++) {
    const double difference = (double)z[d] - (double)e[d];
    sum += difference * difference;
  }
  return sum;
}
template double sum_in_order(const float*, const float*, int64_t);
template double sum_in_order(const double*, const double*, int64_t);

namespace {

constexpr int64_t SAMPLED_CODES = 15, SAMPLED_LENGTHS = 31;
constexpr int64_t MOST_CANDIDATES = 32;  // of a vector, before a scan in float64 is the shorter way

// A process may have asked for subnormal numbers to be read and written as zero; the bounds do not cover that.
struct WithSubnormals {
#ifdef __SSE2__
  WithSubnormals() : kept(_mm_getcsr()) { _mm_setcsr(kept & ~0x8040u); }
  ~WithSubnormals() { _mm_setcsr(kept); }
  unsigned kept;
#elif defined(__aarch64__)
  WithSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(kept));
    asm volatile("msr fpcr, %0" : : "r"(kept & ~(uint64_t(1) << 24)));
  }
  ~WithSubnormals() { asm volatile("msr fpcr, %0" : : "r"(kept)); }
  uint64_t kept;
#else
  WithSubnormals() {}
#endif
};

template <class T>
T median(std::vector<T>& values) {
  if (values.empty()) return 1;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Some point among the codes: in each dimension the median of a few, which an outlier does not move.
template <class S, class T>
std::vector<T> centre_of(const S* codebook, int64_t k, int64_t dim) {
  const int64_t sampled = std::min(k, SAMPLED_CODES);
  std::vector<T> centre(dim), values;
  for (int64_t d = 0; d < dim; d++) {
    values.clear();
    for (int64_t i = 0; i < sampled; i++) {
      const T value = (T)codebook[k * i / sampled * dim + d];
      if (std::isfinite(value)) values.push_back(value);
    }
    centre[d] = median(values);
  }
  return centre;
}

// The median distance of a few from the centre, of those that have one.
template <class S, class T>
T usual_length(const S* data, const int64_t* which, int64_t n, int64_t dim, const std::vector<T>& centre) {
  std::vector<T> lengths;
  const int64_t sampled = std::min(n, SAMPLED_LENGTHS);
  for (int64_t i = 0; i < sampled; i++) {
    const int64_t at = n * i / sampled;
    const S* const from = data + (which ? which[at] : at) * dim;
    T square = 0;
    for (int64_t d = 0; d < dim; d++) square += ((T)from[d] - centre[d]) * ((T)from[d] - centre[d]);
    if (square > 0 && std::isfinite(square)) lengths.push_back(std::sqrt(square));
  }
  return median(lengths);
}

template <class S>
bool finite(const S* values, int64_t size) {
  for (int64_t i = 0; i < size; i++)
    if (!std::isfinite(values[i])) return false;
  return true;
}

enum Outcome { FOUND = 0, NOT_FINITE = 1, NO_MEMORY = 2 };

template <class S>
class Nearest {
 public:
  Nearest(const Instructions& with, int threads, const S* z, int64_t n, const S* codebook, int64_t k, int64_t dim,
          int64_t* indices)
      : with(with), threads(threads), z(z), codebook(codebook), n(n), k(k), dim(dim), indices(indices) {}

  void run();

 private:
  // Settles what arithmetic in T can of the vectors `rows`; these become those that are left. Gives up vectors of more
  // candidates.
  template <class T>
  void level(const Loops<S, T>& loops, std::vector<int64_t>& rows, int64_t most_candidates) {
    const std::vector<T> centre = centre_of<S, T>(codebook, k, dim);
    const int64_t asked = rows.size();
    std::vector<T> limits;
    Search<S, T> s = search(rows, centre);
    bool fits = scan(loops, s, rows, limits);
    for (int64_t row : rows)
      if (!finite(z + row * dim, dim)) throw NOT_FINITE;
    if (!fits && !finite(codebook, k * dim)) throw NOT_FINITE;
    if (4 * (int64_t)rows.size() > asked && codes.empty() && find_distinct()) {
      s = search(rows, centre);
      fits = scan(loops, s, rows, limits);
    }
    s.rows = rows.data();  // and the bounds that made the limits
    s.n = rows.size();
    if (fits || most_candidates > k) collect(loops, s, rows, limits, most_candidates);
  }

  template <class T>
  Search<S, T> search(const std::vector<int64_t>& rows, const std::vector<T>& centre) const {
    const bool all_rows = (int64_t)rows.size() == n, all_codes = codes.empty();
    Search<S, T> s{z,
                   codebook,
                   all_rows ? nullptr : rows.data(),
                   all_codes ? nullptr : codes.data(),
                   (int64_t)rows.size(),
                   all_codes ? k : (int64_t)codes.size(),
                   dim,
                   centre.data(),
                   0,
                   0,
                   0};
    const T a = T(1.4) * (dim + 16) * std::numeric_limits<T>::epsilon() / 2;
    const T b = T(1.4) * (dim + 16) * std::numeric_limits<double>::epsilon() / 2;
    const T t = usual_length(codebook, s.codes, s.k, dim, centre) / usual_length(z, s.rows, s.n, dim, centre);
    s.alpha = a / (2 * t) + a / 2 + b;
    s.beta = a * t / 2 + b;
    s.floor = 4 * (dim + 16) * std::numeric_limits<T>::min();
    return s;
  }

  // Vectors are shared out among the threads; where they are few, codes are, as packing a code costs as much as
  // scoring it for some twenty vectors, and each thread would pack them all.
  std::vector<Part> parts(int64_t rows, int64_t codes) const {
    const bool by_rows = rows >= 256 * threads || codes < 64 * threads;
    const int64_t whole = by_rows ? rows : codes, unit = by_rows ? 16 : 12;
    const int64_t share = ((whole + threads - 1) / threads + unit - 1) / unit * unit;
    std::vector<Part> shares;
    for (int64_t at = 0; at < whole; at += share) {
      const int64_t end = std::min(at + share, whole);
      shares.push_back(by_rows ? Part{at, end, 0, codes} : Part{0, rows, at, end});
    }
    return shares;
  }

  template <class Work>
  void for_each(const std::vector<Part>& shares, const Work& work) const {
    bool without_memory = false;
#pragma omp parallel for num_threads(std::min<int>(threads, shares.size())) schedule(static, 1) if (shares.size() > 1) \
    reduction(|| : without_memory)
    for (int64_t i = 0; i < (int64_t)shares.size(); i++) {
      try {
        WithSubnormals guard;
        work(i);
      } catch (const std::bad_alloc&) {  // may not leave the parallel region
        without_memory = true;
      }
    }
    if (without_memory) throw std::bad_alloc();
  }

  // Where shares are of codes, each leaves its own answer for every vector.
  static int64_t stride(const std::vector<Part>& shares, int64_t rows) {
    return shares.size() > 1 && shares[1].row_begin == 0 ? rows : 0;
  }

  // What is in doubt, and what every candidate reaches.
  template <class T>
  struct Doubts {
    Nearest* self;
    const int64_t* which;  // as Search::rows
    std::vector<int64_t> rows;
    std::vector<T> limits;
    std::vector<Found<T>> found;  // where the shares are of codes, which are yet to be merged

    static void settle(void* to, int64_t first, int64_t count, const Found<T>* found) {
      Doubts& doubts = *static_cast<Doubts*>(to);
      const std::vector<int64_t>& codes = doubts.self->codes;
      for (int64_t i = 0; i < count; i++) {
        const int64_t row = doubts.which ? doubts.which[first + i] : first + i;
        if (found[i].lower > found[i].second) {
          doubts.self->indices[row] = codes.empty() ? found[i].code : codes[found[i].code];
        } else {
          doubts.rows.push_back(row);
          doubts.limits.push_back(found[i].lower);
        }
      }
    }

    static void keep(void* to, int64_t, int64_t count, const Found<T>* found) {
      Doubts& doubts = *static_cast<Doubts*>(to);
      doubts.found.insert(doubts.found.end(), found, found + count);
    }
  };

  template <class T>
  bool scan(const Loops<S, T>& loops, const Search<S, T>& s, std::vector<int64_t>& rows, std::vector<T>& limits) {
    const std::vector<Part> shares = parts(s.n, s.k);
    const bool of_codes = stride(shares, s.n) > 0;
    std::vector<Doubts<T>> doubts(shares.size(), Doubts<T>{this, s.rows, {}, {}, {}});
    std::vector<char> fits(shares.size());
    for_each(shares, [&](int64_t i) {
      fits[i] = loops.scan(s, shares[i], {of_codes ? Doubts<T>::keep : Doubts<T>::settle, &doubts[i]});
    });
    if (std::find(fits.begin(), fits.end(), 0) != fits.end()) {
      limits.assign(s.n, -std::numeric_limits<T>::infinity());
      return false;
    }
    for (int64_t r = 0; of_codes && r < s.n; r++) {
      Found<T>& best = doubts[0].found[r];
      for (size_t i = 1; i < doubts.size(); i++) {
        const Found<T>& other = doubts[i].found[r];
        const T second = std::max({best.second, other.second, std::min(best.upper, other.upper)});
        if (other.upper > best.upper) best = other;
        best.second = second;
      }
      Doubts<T>::settle(&doubts[0], r, 1, &best);
    }
    std::vector<int64_t> doubtful;
    limits.clear();
    for (const Doubts<T>& part : doubts) {
      doubtful.insert(doubtful.end(), part.rows.begin(), part.rows.end());
      limits.insert(limits.end(), part.limits.begin(), part.limits.end());
    }
    rows.swap(doubtful);
    return true;
  }

  template <class T>
  void collect(const Loops<S, T>& loops, const Search<S, T>& s, std::vector<int64_t>& rows,
               const std::vector<T>& limits, int64_t most) {
    const std::vector<Part> shares = parts(s.n, s.k);
    const int64_t apart = stride(shares, s.n);
    std::vector<Decided> decided(apart ? apart * shares.size() : s.n, {NAN, -1, 0});
    for_each(shares, [&](int64_t i) { loops.collect(s, shares[i], limits.data(), most, decided.data() + i * apart); });
    std::vector<int64_t> given_up;
    for (int64_t r = 0; r < s.n; r++) {
      Decided best = decided[r];
      for (int64_t i = r + apart; apart && i < (int64_t)decided.size(); i += apart) {
        const int64_t candidates = std::max(best.candidates, decided[i].candidates);
        if (best.code < 0 || decided[i].sum < best.sum) best = decided[i];  // of equal sums the lower code is there
        best.candidates = candidates;
      }
      if (best.candidates > most)
        given_up.push_back(rows[r]);
      else
        indices[rows[r]] = codes.empty() ? best.code : codes[best.code];
    }
    rows.swap(given_up);
  }

  // Equal codes tie on every vector, as in a codebook of zeros. True where there are any.
  bool find_distinct() {
    std::vector<std::pair<uint64_t, int64_t>> hashed(k);
    for (int64_t i = 0; i < k; i++) {
      uint64_t hash = 1469598103934665603u;
      for (int64_t d = 0; d < dim; d++) {
        const S value = codebook[i * dim + d] + S(0);  // -0 is 0
        uint64_t bits = 0;
        std::memcpy(&bits, &value, sizeof value);
        hash = (hash ^ bits) * 1099511628211u;
        hash ^= hash >> 29;
      }
      hashed[i] = {hash, i};
    }
    std::sort(hashed.begin(), hashed.end());
    for (int64_t i = 0, first = 0; i < k; i++) {
      if (hashed[i].first != hashed[first].first) first = i;
      const S* const a = codebook + hashed[first].second * dim;
      const bool repeated = i != first && std::equal(a, a + dim, codebook + hashed[i].second * dim);
      if (!repeated) codes.push_back(hashed[i].second);
    }
    std::sort(codes.begin(), codes.end());
    return (int64_t)codes.size() < k;
  }

  const Instructions& with;
  const int threads;
  const S *const z, *const codebook;
  const int64_t n, k, dim;
  int64_t* const indices;
  std::vector<int64_t> codes;  // the first of each set of equal ones, once somebody asked; until then empty
};

constexpr int64_t EVERY = std::numeric_limits<int64_t>::max();

template <>
void Nearest<float>::run() {
  std::vector<int64_t> rows(n);
  for (int64_t r = 0; r < n; r++) rows[r] = r;
  if (k <= std::numeric_limits<int32_t>::max() && dim < 1 << 20)  // what its lanes count to, and where its bound holds
    level(with.narrow, rows, MOST_CANDIDATES);
  if (!rows.empty()) level(with.wide, rows, EVERY);
}

template <>
void Nearest<double>::run() {
  std::vector<int64_t> rows(n);
  for (int64_t r = 0; r < n; r++) rows[r] = r;
  level(with.wide_data, rows, EVERY);
}

const Instructions& named([[maybe_unused]] const char* name) {
#ifdef VQKIT_AVX2
  if (std::strcmp(name, avx2.name) == 0) return avx2;
#endif
  return portable;
}

template <class S>
int nearest(const char* instructions, int threads, const S* z, int64_t n, const S* codebook, int64_t k, int64_t dim,
            int64_t* indices) {
  WithSubnormals guard;
  try {
    Nearest<S>(named(instructions), usable(threads), z, n, codebook, k, dim, indices).run();
  } catch (Outcome outcome) {
    return outcome;
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
  return FOUND;
}

}  // namespace
}  // namespace vqkit

#define EXPORT extern "C" __attribute__((visibility("default")))

// Another number where a function takes other arguments; native.py asks for its own.
EXPORT int vqkit_interface() { return 1; }

// Of what this was built, as hatch_build.py counts it.
EXPORT const char* vqkit_sources() { return VQKIT_SOURCES; }

// The best instructions of this processor.
EXPORT const char* vqkit_instructions() {
#ifdef VQKIT_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return vqkit::avx2.name;
#endif
  return vqkit::portable.name;
}

EXPORT int vqkit_nearest_float(const char* instructions, int threads, const float* z, int64_t n, const float* codebook,
                               int64_t k, int64_t dim, int64_t* indices) {
  return vqkit::nearest(instructions, threads, z, n, codebook, k, dim, indices);
}

EXPORT int vqkit_nearest_double(const char* instructions, int threads, const double* z, int64_t n,
                                const double* codebook, int64_t k, int64_t dim, int64_t* indices) {
  return vqkit::nearest(instructions, threads, z, n, codebook, k, dim, indices);
}
