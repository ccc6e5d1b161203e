// What the driver (nearest.cpp) asks of the inner loops (tiles.h), of which there is one build per instruction set.
//
// Suffixes as in search.py: N vectors, K codes, D dimensions. T is the type of the arithmetic, S that of the data.
#pragma once
#include <cstdint>

namespace vqkit {

// One search: what every part of it reads.
template <class S, class T>
struct Search {
  const S* z;            // (N, D)
  const S* codebook;     // (K, D)
  const int64_t* rows;   // which vectors, or null for all in order
  const int64_t* codes;  // which codes, ascending, or null for all in order
  int64_t n, k, dim;     // how many of either
  const T* centre;       // (D,): both sides are moved by it
  // A score's rounding error is below  alpha |e|^2 + beta |x|^2 + floor  (nearest.cpp says why).
  T alpha, beta, floor;
};

// A range of vectors against a range of codes.
struct Part {
  int64_t row_begin, row_end, code_begin, code_end;
};

// What a scan leaves for each vector: the code of the highest score, the two numbers between which its true score lies
// (the first but for beta |x|^2, which all codes share), and what no other code's exceeds. Where `lower > second` it is
// the nearest.
template <class T>
struct Found {
  T upper, lower, second;
  int64_t code;
};

// Takes what a scan leaves, a block of vectors at a time, while it is in the cache.
template <class T>
struct Sink {
  void (*take)(void* to, int64_t first, int64_t count, const Found<T>* found);
  void* to;
};

// The codes that a scan could not part, by the definition: the least sum in float64, and the lowest index that has it.
struct Decided {
  double sum;
  int64_t code;
  int64_t candidates;
};

// sum_d (z_d - e_d)^2 in float64, one addition for each d in turn.
template <class S>
double sum_in_order(const S* z, const S* e, int64_t dim);

template <class S, class T>
struct Loops {
  // False where a code is too long for T (or not finite): then nothing that was found holds.
  bool (*scan)(const Search<S, T>&, const Part&, const Sink<T>&);
  // Every code that is not below the vector's limit is a candidate; with more than `most` the vector is given up.
  void (*collect)(const Search<S, T>&, const Part&, const T* limits, int64_t most, Decided*);
};

struct Instructions {
  const char* name;
  Loops<float, float> narrow;
  Loops<float, double> wide;
  Loops<double, double> wide_data;
};

extern const Instructions portable;
#ifdef VQKIT_AVX2
extern const Instructions avx2;
#endif

}  // namespace vqkit
