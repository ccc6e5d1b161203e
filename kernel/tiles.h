// The inner loops, generic over the type and the width of a vector register; included once per instruction set.
//
// A tile is two registers of vectors by CODES codes: each lane is a vector of its own, so that its best score, the
// second best and the best one's code stay in that lane and nothing is ever written as a matrix. Vectors are packed
// (D, lanes) a tile, codes (D, CODES) a panel, a block of panels at a time, so that both come from the cache.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>

#include "scan.h"

namespace vqkit {
namespace {

// Bytes of packed vectors, and of packed codes. Each block of vectors packs all codes anew (but where these are one
// block), so that it holds a thousand at least.
constexpr int64_t ROW_BLOCK = 1 << 18, FEWEST_ROWS = 1024, CODE_BLOCK = 1 << 17;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vector __attribute__((vector_size(VQKIT_BYTES)));
  typedef int32_t integers __attribute__((vector_size(VQKIT_BYTES)));
  typedef int32_t integer;
};
template <>
struct Lanes<double> {
  typedef double vector __attribute__((vector_size(VQKIT_BYTES)));
  typedef int64_t integers __attribute__((vector_size(VQKIT_BYTES)));
  typedef int64_t integer;
};

template <class T>
struct Aligned {
  explicit Aligned(int64_t size) : data(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {
    if (!data) throw std::bad_alloc();
  }
  Aligned(const Aligned&) = delete;
  ~Aligned() { std::free(data); }
  T* data;
};

template <class S, class T, int CODES>
class Tiles {
  using V = typename Lanes<T>::vector;
  using I = typename Lanes<T>::integers;
  static constexpr int LANES = VQKIT_BYTES / sizeof(T), ROWS = 2 * LANES;

 public:
  Tiles(const Search<S, T>& search, const Part& part)
      : s(search),
        part(part),
        dim(search.dim),
        block_rows(
            clamp(std::max(FEWEST_ROWS, ROW_BLOCK / (dim * (int64_t)sizeof(T))), ROWS, part.row_end - part.row_begin)),
        block_codes(clamp(CODE_BLOCK / (dim * (int64_t)sizeof(T)), CODES, part.code_end - part.code_begin)),
        rows(block_rows * dim),
        panels(block_codes * dim),
        offsets(block_codes),
        lengths(part.code_end - part.code_begin),
        squares(block_rows),
        state(block_rows / LANES * 3) {}

  bool scan(const Sink<T>& sink) {
    const Aligned<Found<T>> found(block_rows);
    bool fits = true;
    for (int64_t row = part.row_begin; row < part.row_end; row += block_rows) {
      const int64_t end = std::min(row + block_rows, part.row_end), tiles = (end - row + ROWS - 1) / ROWS;
      pack_rows(row, end);
      V* const kept = state.data;
      for (int64_t i = 0; i < tiles * 2; i++) {
        kept[3 * i] = kept[3 * i + 1] = -std::numeric_limits<T>::infinity() - V{};
        kept[3 * i + 2] = V{};
      }
      for (int64_t code = part.code_begin; code < part.code_end; code += block_codes) {
        const int64_t panels_here = pack_codes(code, row == part.row_begin, &fits);
        for (int64_t tile = 0; tile < tiles; tile++) score(tile, code, panels_here, kept + 6 * tile);
      }
      for (int64_t r = 0; r < end - row; r++) found.data[r] = finish(r);
      sink.take(sink.to, row, end - row, found.data);
    }
    return fits;
  }

  void collect(const T* limits, int64_t most, Decided* decided) {
    for (int64_t row = part.row_begin; row < part.row_end; row += block_rows) {
      const int64_t end = std::min(row + block_rows, part.row_end), tiles = (end - row + ROWS - 1) / ROWS;
      pack_rows(row, end);
      for (int64_t code = part.code_begin; code < part.code_end; code += block_codes) {
        const int64_t panels_here = pack_codes(code, row == part.row_begin, nullptr);
        for (int64_t tile = 0; tile < tiles; tile++)
          for (int64_t panel = 0; panel < panels_here; panel++) {
            V scores[2][CODES];
            multiply(tile, panel, scores);
            const int64_t first = row + tile * ROWS, codes_end = std::min(part.code_end, code + (panel + 1) * CODES);
            for (int64_t k = code + panel * CODES; k < codes_end; k++)
              for (int64_t r = first; r < std::min(first + ROWS, end); r++) {
                const T score = scores[(r - first) / LANES][k - code - panel * CODES][(r - first) % LANES];
                if (!(score < limits[r]) && decided[r].candidates <= most) consider(r, k, decided[r]);
              }
          }
      }
    }
  }

 private:
  static int64_t clamp(int64_t fitting, int64_t unit, int64_t needed) {
    const int64_t wanted = std::min(fitting, needed);
    return std::max<int64_t>(1, (wanted + unit - 1) / unit) * unit;
  }
  const S* vector(int64_t r) const { return s.z + (s.rows ? s.rows[r] : r) * dim; }
  const S* code(int64_t k) const { return s.codebook + (s.codes ? s.codes[k] : k) * dim; }

  void pack_rows(int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += ROWS) {
      T* const to = rows.data + (first - begin) * dim;
      const S* from[ROWS];
      for (int r = 0; r < ROWS; r++) from[r] = vector(std::min(first + r, end - 1));
      V sums[2] = {};
      for (int64_t d = 0; d < dim; d++) {
        T* const here = to + d * ROWS;
        for (int r = 0; r < ROWS; r++) here[r] = (T)from[r][d] - s.centre[d];
        for (int v = 0; v < 2; v++) {
          const V x = *(const V*)(here + v * LANES);
          sums[v] += x * x;
        }
      }
      for (int r = 0; r < ROWS; r++) squares.data[first - begin + r] = sums[r / LANES][r % LANES];
    }
  }

  // A block that is the only one stays as it was packed for the first vectors.
  int64_t pack_codes(int64_t begin, bool first_rows, bool* fits) {
    const int64_t end = std::min(begin + block_codes, part.code_end), panels_here = (end - begin + CODES - 1) / CODES;
    if (!first_rows && part.code_end - part.code_begin <= block_codes) return panels_here;
    for (int64_t k = begin; k < begin + panels_here * CODES; k++) {
      T* const to = panels.data + (k - begin) / CODES * CODES * dim + (k - begin) % CODES;
      if (k >= end) {  // never the best
        for (int64_t d = 0; d < dim; d++) to[d * CODES] = 0;
        offsets.data[k - begin] = -std::numeric_limits<T>::infinity();
        continue;
      }
      const S* const from = code(k);
      T sums[4] = {};
      int64_t d = 0;
      for (; d + 4 <= dim; d += 4)
        for (int i = 0; i < 4; i++) {
          const T e = (T)from[d + i] - s.centre[d + i];
          to[(d + i) * CODES] = e;
          sums[i] += e * e;
        }
      for (; d < dim; d++) {
        const T e = (T)from[d] - s.centre[d];
        to[d * CODES] = e;
        sums[0] += e * e;
      }
      const T square = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (fits && !(square < std::numeric_limits<T>::max() / 64)) *fits = false;
      offsets.data[k - begin] = square * (s.alpha - T(0.5));
      lengths.data[k - part.code_begin] = square;
    }
    return panels_here;
  }

  // scores = x.e - |e|^2/2 + alpha |e|^2: what the true score does not exceed, but for what depends on x alone.
  __attribute__((always_inline)) inline void multiply(int64_t tile, int64_t panel, V (&scores)[2][CODES]) const {
    const T* x = rows.data + tile * ROWS * dim;
    const T* e = panels.data + panel * CODES * dim;
    const T* const offset = offsets.data + panel * CODES;
    V a[CODES], b[CODES];
#pragma GCC unroll 8
    for (int k = 0; k < CODES; k++) a[k] = b[k] = offset[k] - V{};
    for (int64_t d = 0; d < dim; d++, x += ROWS, e += CODES) {
      const V x0 = *(const V*)x, x1 = *(const V*)(x + LANES);
#pragma GCC unroll 8
      for (int k = 0; k < CODES; k++) {
        const V one = e[k] - V{};
        a[k] += x0 * one;
        b[k] += x1 * one;
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < CODES; k++) {
      scores[0][k] = a[k];
      scores[1][k] = b[k];
    }
  }

  __attribute__((always_inline)) static inline void keep(const V& u, const I& id, V& best, V& second, I& code) {
    const I higher = u > best;
    const V lesser = u < best ? u : best;  // of NaN it is the best, which then is in doubt
    second = lesser > second ? lesser : second;
    best = higher ? u : best;
    code = higher ? id : code;
  }

  void score(int64_t tile, int64_t first, int64_t panels_here, V* kept) const {
    V best0 = kept[0], second0 = kept[1], best1 = kept[3], second1 = kept[4];
    I code0 = (I)kept[2], code1 = (I)kept[5];
    I id = I{} + (typename Lanes<T>::integer)(first - part.code_begin);
    for (int64_t panel = 0; panel < panels_here; panel++) {
      // Twelve sums leave no register for what is kept; without this the compiler spills sums, inside the long loop.
      if (CODES > 4) asm("" : "+m"(best0), "+m"(second0), "+m"(code0), "+m"(best1), "+m"(second1), "+m"(code1));
      V scores[2][CODES];
      multiply(tile, panel, scores);
#pragma GCC unroll 8
      for (int k = 0; k < CODES; k++) {
        keep(scores[0][k], id, best0, second0, code0);
        keep(scores[1][k], id, best1, second1, code1);
        id += 1;
      }
    }
    kept[0] = best0, kept[1] = second0, kept[2] = (V)code0;
    kept[3] = best1, kept[4] = second1, kept[5] = (V)code1;
  }

  Found<T> finish(int64_t r) const {
    const V* const kept = state.data + r / LANES * 3;
    const int64_t k = ((I)kept[2])[r % LANES];
    const T square = squares.data[r];
    const T upper = kept[0][r % LANES], most = std::numeric_limits<T>::max() / 64;
    T lower = upper - 2 * s.alpha * lengths.data[k] - 2 * s.beta * square - s.floor;
    if (!(square < most && upper < most)) lower = -std::numeric_limits<T>::infinity();  // too long for T
    return {upper, lower, kept[1][r % LANES], part.code_begin + k};
  }

  void consider(int64_t r, int64_t k, Decided& decided) const {
    const double sum = sum_in_order(vector(r), code(k), dim);
    if (!(sum >= decided.sum)) decided = {sum, k, decided.candidates};
    decided.candidates++;
  }

  const Search<S, T>& s;
  const Part part;
  const int64_t dim, block_rows, block_codes;
  Aligned<T> rows, panels, offsets, lengths, squares;
  Aligned<V> state;
};

// Short vectors leave no time to reload what a tile keeps: fewer codes at a time hold it in registers.
template <class S, class T>
bool scan(const Search<S, T>& search, const Part& part, const Sink<T>& sink) {
  return search.dim <= 8 ? Tiles<S, T, 4>(search, part).scan(sink) : Tiles<S, T, 6>(search, part).scan(sink);
}

template <class S, class T>
void collect(const Search<S, T>& search, const Part& part, const T* limits, int64_t most, Decided* decided) {
  if (search.dim <= 8)
    Tiles<S, T, 4>(search, part).collect(limits, most, decided);
  else
    Tiles<S, T, 6>(search, part).collect(limits, most, decided);
}

}  // namespace
}  // namespace vqkit

#define VQKIT_INSTRUCTIONS(NAME)                                                                        \
  const vqkit::Instructions vqkit::NAME = {#NAME,                                                       \
                                           {vqkit::scan<float, float>, vqkit::collect<float, float>},   \
                                           {vqkit::scan<float, double>, vqkit::collect<float, double>}, \
                                           {vqkit::scan<double, double>, vqkit::collect<double, double>}};
