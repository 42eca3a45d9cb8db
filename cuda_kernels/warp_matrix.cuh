// Pairs of halves, and the layers of a small network for the 32 samples of one warp on the tensor cores.
//
// No header of the CUDA toolkit is needed, so that NVRTC alone can compile this. Without a CUDA compiler the
// same text compiles as C++ against warp_emulation.h, which runs the 32 lanes of a warp one after the other.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane 4 g + t holds of A
// the rows g and g + 8 at the columns 2t, 2t + 1, 2t + 8, 2t + 9, and of the sums the rows g and g + 8 at the
// columns 2t, 2t + 1. Two column tiles of sums, rounded to halves, are therefore one tile of the next A.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#if defined(__CUDACC__)
#define DEVICE __device__ __forceinline__
#define ANYWHERE __host__ __device__
#define ON_GPU 1
#else
#include "warp_emulation.h"
#define ANYWHERE
#define ON_GPU 0
#endif

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int ROW_TILES = 2;  // 32 samples are two tiles of 16 rows

struct Fragment {  // 16 rows by 16 columns of halves
  u32 pair[4];
};

struct Sums {  // 16 rows by 8 columns of float
  float at[4];
};

struct HalfSums {  // 16 rows by 8 columns of halves
  u32 pair[2];
};

// ------------------------------------------------------------------------------------------ pairs of halves
#if ON_GPU
// Two halves, the first in the low bits.
DEVICE u32 half_pair(float first, float second) {
  u32 pair;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
  asm("{ .reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }"
      : "=r"(pair)
      : "f"(first), "f"(second));
#endif
  return pair;
}

// Two halves after ReLU. Infinity becomes the largest half, and NaN (of infinities in a sum) zero.
DEVICE u32 rectified(u32 pair) {
#if __CUDA_ARCH__ >= 800
  asm("max.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(0u));
  asm("min.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(0x7bff7bffu));
#else
  asm("{ .reg .pred p, q; .reg .f16 a, b; .reg .f32 x, y; mov.b32 {a, b}, %0; cvt.f32.f16 x, a; cvt.f32.f16 y, b;"
      "max.f32 x, x, 0f00000000; max.f32 y, y, 0f00000000; min.f32 x, x, 0f477FE000; min.f32 y, y, 0f477FE000;"
      "cvt.rn.f16.f32 a, x; cvt.rn.f16.f32 b, y; mov.b32 %0, {a, b}; }"
      : "+r"(pair));
#endif
  return pair;
}

// near + weight * (far - near), for both halves.
DEVICE u32 blend_pairs(u32 near, u32 far, u32 weight) {
  u32 difference, result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(far), "r"(near));
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(weight), "r"(difference), "r"(near));
  return result;
}

// ------------------------------------------------------------------------------------------ warp operations
// Adds to a counter that all blocks see, after whatever this lane has written and seen written. __threadfence would
// do too, but empties the L1 cache of the multiprocessor each time.
DEVICE void add_after_writes(u32* counter, u32 value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" : : "l"(counter), "r"(value) : "memory");
}

// Waits until others have added up to a count; what they wrote before is seen by what is read with __ldcg after it.
DEVICE void wait_for_count(const u32* counter, u32 count) {
  while (*static_cast<const volatile u32*>(counter) < count) __nanosleep(200);
  asm volatile("{ .reg .u32 seen; ld.acquire.gpu.global.u32 seen, [%0]; }" : : "l"(counter) : "memory");
}

DEVICE void multiply_add(Sums& sums, const Fragment& a, u32 b_low, u32 b_high) {
  float(&c)[4] = sums.at;
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b_low), "r"(b_high));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(b_low));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.pair[2]), "r"(a.pair[3]), "r"(b_high));
#endif
}

DEVICE void multiply_add(HalfSums& sums, const Fragment& a, u32 b_low, u32 b_high) {
  u32(&c)[2] = sums.pair;
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b_low), "r"(b_high));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3}, {%4}, {%0,%1};"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(b_low));
  asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3}, {%4}, {%0,%1};"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a.pair[2]), "r"(a.pair[3]), "r"(b_high));
#endif
}

// One fragment of rows in shared memory; each lane names the 16 bytes (row, eight columns) that it contributes.
DEVICE void load_fragment(Fragment& a, const void* sixteen_bytes) {
  u32 address;
  asm("{ .reg .u64 p; cvta.to.shared.u64 p, %1; cvt.u32.u64 %0, p; }" : "=r"(address) : "l"(sixteen_bytes));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a.pair[0]), "=r"(a.pair[1]), "=r"(a.pair[2]), "=r"(a.pair[3])
               : "r"(address)
               : "memory");
}
#endif

// ------------------------------------------------------------------------------------------ layers
// Weights stand in the order in which a warp reads them. A hidden layer: for each 16 outputs, for each 16
// inputs, one uint4 a lane, the B fragments of outputs 0-7 and 8-15. A last layer of up to eight outputs: for
// each 16 inputs one uint2 a lane.
//
// Layers are summed in float where coordinates come out in the end, which a fine grid enlarges, and at the end
// of a net. Other hidden layers are summed in halves: that saves registers, and consumer GPUs do it at twice the
// rate.

// Weights that a block has copied to shared memory, or that each warp reads through the L1 cache.
template <bool IN_SHARED>
struct Weights {
  const uint4* start;

  DEVICE uint4 pair_of_tiles(int tile, int lane) const {
    const uint4* at = start + tile * 32 + lane;
    return IN_SHARED ? *at : __ldg(at);
  }
  DEVICE uint2 one_tile(int tile, int lane) const {
    const uint2* at = reinterpret_cast<const uint2*>(start) + tile * 32 + lane;
    return IN_SHARED ? *at : __ldg(at);
  }
  DEVICE Weights after(int uint4s) const { return Weights{start + uint4s}; }
};

ANYWHERE constexpr int hidden_uint4s(int in_tiles, int out_tiles) { return in_tiles * out_tiles * 32; }
ANYWHERE constexpr int last_uint4s(int in_tiles) { return in_tiles * 16; }

DEVICE void begin(Sums& sums, float2 bias) { sums = Sums{{bias.x, bias.y, bias.x, bias.y}}; }

DEVICE void begin(HalfSums& sums, float2 bias) {
  const u32 pair = half_pair(bias.x, bias.y);
  sums = HalfSums{{pair, pair}};
}

// The sums' upper eight rows (0) or lower ones (1) after ReLU, as halves.
DEVICE u32 rectified(const Sums& sums, int lower) {
  return rectified(half_pair(sums.at[2 * lower], sums.at[2 * lower + 1]));
}

DEVICE u32 rectified(const HalfSums& sums, int lower) { return rectified(sums.pair[lower]); }

// 16 outputs of a hidden layer, from their tile of weights on: ReLU, as the fragments of the next layer.
// bias: 16 floats in device memory, or null.
template <int IN_TILES, class SUMS, bool IN_SHARED, int SLOTS>
DEVICE void sixteen_outputs(const Fragment (&in)[ROW_TILES][SLOTS], Weights<IN_SHARED> weights, int tile,
                            const float* bias, int lane, Fragment (&out)[ROW_TILES]) {
  SUMS sums[ROW_TILES][2];
  float2 first = {0.0f, 0.0f}, second = {0.0f, 0.0f};
  if (bias != nullptr) {
    const float2* at = reinterpret_cast<const float2*>(bias) + (lane & 3);
    first = __ldg(at);
    second = __ldg(at + 4);
  }
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
    begin(sums[m][0], first);
    begin(sums[m][1], second);
  }
#pragma unroll
  for (int k = 0; k < IN_TILES; k++) {
    const uint4 b = weights.pair_of_tiles(tile * IN_TILES + k, lane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      multiply_add(sums[m][0], in[m][k], b.x, b.y);
      multiply_add(sums[m][1], in[m][k], b.z, b.w);
    }
  }
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) out[m].pair[i] = rectified(sums[m][i / 2], i % 2);
}

// A hidden layer: 16 IN_TILES inputs to 16 OUT_TILES outputs, with ReLU.
template <int IN_TILES, int OUT_TILES, class SUMS, bool IN_SHARED, int IN_SLOTS, int OUT_SLOTS>
DEVICE void hidden_layer(const Fragment (&in)[ROW_TILES][IN_SLOTS], Weights<IN_SHARED> weights, const float* bias,
                         int lane, Fragment (&out)[ROW_TILES][OUT_SLOTS]) {
#pragma unroll
  for (int n = 0; n < OUT_TILES; n++) {
    Fragment made[ROW_TILES];
    sixteen_outputs<IN_TILES, SUMS>(in, weights, n, bias == nullptr ? nullptr : bias + 16 * n, lane, made);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) out[m][n] = made[m];
  }
}

// A hidden layer and the last one behind it, whose up to eight outputs take in each 16 hidden ones as they are
// made: these need no registers beyond that.
template <int IN_TILES, int HIDDEN_TILES, class SUMS, bool IN_SHARED, int IN_SLOTS>
DEVICE void last_two_layers(const Fragment (&in)[ROW_TILES][IN_SLOTS], Weights<IN_SHARED> hidden,
                            Weights<IN_SHARED> last, int lane, Sums (&out)[ROW_TILES]) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) begin(out[m], float2{0.0f, 0.0f});
#pragma unroll 1
  for (int n = 0; n < HIDDEN_TILES; n++) {
    Fragment made[ROW_TILES];
    sixteen_outputs<IN_TILES, SUMS>(in, hidden, n, nullptr, lane, made);
    const uint2 b = last.one_tile(n, lane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) multiply_add(out[m], made[m], b.x, b.y);
  }
}

// A last layer of up to eight outputs.
template <int IN_TILES, bool IN_SHARED, int IN_SLOTS>
DEVICE void last_layer(const Fragment (&in)[ROW_TILES][IN_SLOTS], Weights<IN_SHARED> weights, int lane,
                       Sums (&out)[ROW_TILES]) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) begin(out[m], float2{0.0f, 0.0f});
#pragma unroll
  for (int k = 0; k < IN_TILES; k++) {
    const uint2 b = weights.one_tile(k, lane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) multiply_add(out[m], in[m][k], b.x, b.y);
  }
}
