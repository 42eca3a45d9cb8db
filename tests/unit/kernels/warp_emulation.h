// One warp of 32 lanes as 32 fibres of one thread, so that the CUDA sources compile and run as plain C++.
//
// A lane runs until it meets the others (a barrier, a ballot, a shuffle, a matrix product), then the next one
// does. Halves round as on the GPU; the tensor cores' sums are taken in float in the order of the columns.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define DEVICE inline
#define __global__
#define __constant__
#define __shared__
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Dim { unsigned x, y, z; };

// ------------------------------------------------------------------------------------------ lanes
struct Lanes {
  ucontext_t scheduler, contexts[32];
  int current = 0, living = 0;
  bool ended[32] = {};
  unsigned meetings[32] = {};
  unsigned words[2][32][6] = {};  // what lanes show each other; two sets, used in turn
};
inline Lanes lanes;
inline Dim blockIdx, blockDim, gridDim;
struct ThreadIndex {
  struct { operator unsigned() const { return static_cast<unsigned>(lanes.current); } } x;
};
inline ThreadIndex threadIdx;

inline void next_lane() {
  const int self = lanes.current;
  int other = (self + 1) % 32;
  while (lanes.ended[other] && other != self) other = (other + 1) % 32;
  if (other == self) return;
  lanes.current = other;
  swapcontext(&lanes.contexts[self], &lanes.contexts[other]);
}

// Shows `count` words to the other lanes, waits for theirs, and returns them.
inline const unsigned (*meet(const unsigned* own, int count))[6] {
  auto& words = lanes.words[lanes.meetings[lanes.current]++ % 2];
  for (int i = 0; i < count; i++) words[lanes.current][i] = own[i];
  next_lane();
  return words;
}

inline void __syncwarp() { meet(nullptr, 0); }
inline void __syncthreads() { meet(nullptr, 0); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const unsigned own = predicate;
  const auto words = meet(&own, 1);
  unsigned result = 0;
  for (int i = 0; i < 32; i++) result |= words[i][0] << i;
  return result;
}

inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  unsigned own;
  std::memcpy(&own, &value, 4);
  const auto words = meet(&own, 1);
  std::memcpy(&value, &words[from & 31][0], 4);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) { return __shfl_sync(mask, value, lanes.current ^ other); }
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by) {
  return __shfl_sync(mask, value, lanes.current < by ? lanes.current : lanes.current - by);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by) {
  return __shfl_sync(mask, value, lanes.current + by > 31 ? lanes.current : lanes.current + by);
}

inline void (*lane_body)();
inline void lane_entry() {
  lane_body();
  const int self = lanes.current;
  lanes.ended[self] = true;
  if (--lanes.living == 0) setcontext(&lanes.scheduler);
  next_lane();
}

// Runs a kernel's body for every lane of every block, one block after the other.
inline void run_blocks(void (*body)(), unsigned blocks) {
  constexpr size_t stack_bytes = 1 << 18;
  static char* const stacks = static_cast<char*>(std::malloc(32 * stack_bytes));
  lane_body = body;
  gridDim = {blocks, 1, 1};
  blockDim = {32, 1, 1};
  for (unsigned block = 0; block < blocks; block++) {
    blockIdx = {block, 0, 0};
    lanes.living = 32;
    lanes.current = 0;
    for (int i = 0; i < 32; i++) {
      lanes.ended[i] = false;
      lanes.meetings[i] = 0;
      getcontext(&lanes.contexts[i]);
      lanes.contexts[i].uc_stack.ss_sp = stacks + i * stack_bytes;
      lanes.contexts[i].uc_stack.ss_size = stack_bytes;
      lanes.contexts[i].uc_link = nullptr;
      makecontext(&lanes.contexts[i], lane_entry, 0);
    }
    swapcontext(&lanes.scheduler, &lanes.contexts[0]);
  }
}

// ------------------------------------------------------------------------------------------ single lanes
template <class T>
T __ldg(const T* at) { return *at; }
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned old = *at;
  *at += value;
  return old;
}
inline void atomicAdd(float* at, float value) { *at += value; }
inline void add_after_writes(unsigned* counter, unsigned value) { *counter += value; }
inline void wait_for_count(const unsigned* counter, unsigned count) {
  if (*counter != count) std::abort();  // one warp runs: all rays are drawn before tiles are finished
}
template <class T>
T __ldcg(const T* at) { return *at; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __expf(float x) { return std::exp(x); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(x * 3.14159265358979323846));
  *cosine = static_cast<float>(std::cos(x * 3.14159265358979323846));
}

// ------------------------------------------------------------------------------------------ halves
union Halves {
  unsigned word;
  _Float16 at[2];
};
inline unsigned half_pair(float first, float second) {
  Halves pair;
  pair.at[0] = static_cast<_Float16>(first);
  pair.at[1] = static_cast<_Float16>(second);
  return pair.word;
}
inline unsigned rectified(unsigned word) {
  Halves pair{word};
  for (auto& half : pair.at)
    half = static_cast<_Float16>(std::fmin(std::fmax(static_cast<float>(half), 0.0f), 65504.0f));
  return pair.word;
}
inline unsigned blend_pairs(unsigned near, unsigned far, unsigned weight) {
  Halves a{near}, b{far}, w{weight}, result;
  for (int i = 0; i < 2; i++) {
    const _Float16 difference = static_cast<_Float16>(static_cast<float>(b.at[i]) - static_cast<float>(a.at[i]));
    result.at[i] = static_cast<_Float16>(
        std::fma(static_cast<float>(w.at[i]), static_cast<float>(difference), static_cast<float>(a.at[i])));
  }
  return result.word;
}

// ------------------------------------------------------------------------------------------ tensor cores
template <class Fragment>
void add_products(float (&sums)[4], const Fragment& a, unsigned b_low, unsigned b_high) {
  const unsigned own[6] = {a.pair[0], a.pair[1], a.pair[2], a.pair[3], b_low, b_high};
  const auto words = meet(own, 6);
  const int row = lanes.current >> 2, column = 2 * (lanes.current & 3);
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) {
      const int lane = k % 8 / 2, upper = k / 8;
      const Halves left{words[4 * row + lane][2 * upper + i / 2]};
      const Halves right{words[4 * (column + i % 2) + lane][4 + upper]};
      sums[i] += static_cast<float>(left.at[k % 2]) * static_cast<float>(right.at[k % 2]);
    }
}
template <class Sums, class Fragment>
void multiply_add(Sums& sums, const Fragment& a, unsigned b_low, unsigned b_high) {
  if constexpr (sizeof(Sums) == sizeof(float[4])) {
    add_products(reinterpret_cast<float(&)[4]>(sums), a, b_low, b_high);
  } else {  // sums of halves, rounded once a product
    auto& pairs = reinterpret_cast<Halves(&)[2]>(sums);
    float wide[4];
    for (int i = 0; i < 4; i++) wide[i] = static_cast<float>(pairs[i / 2].at[i % 2]);
    add_products(wide, a, b_low, b_high);
    for (int i = 0; i < 4; i++) pairs[i / 2].at[i % 2] = static_cast<_Float16>(wide[i]);
  }
}
template <class Fragment>
void load_fragment(Fragment& a, const void* sixteen_bytes) {
  unsigned own[2];
  std::memcpy(own, &sixteen_bytes, 8);
  const auto words = meet(own, 2);
  for (int matrix = 0; matrix < 4; matrix++) {
    const unsigned* row;
    std::memcpy(&row, words[8 * matrix + (lanes.current >> 2)], 8);
    a.pair[matrix] = row[lanes.current & 3];
  }
}
