// Grid encoding, ray marching and compositing of a training step, forward and backward, in float.
//
// Each kernel does what the function of the same name in torch_reference.py does, with the same roundings where a
// rounding decides which cell a point lies in. No header of the CUDA toolkit is needed, so that NVRTC alone can
// compile this. Without a CUDA compiler the same text compiles as C++ against warp_emulation.h.
//
// The argument records are those of torch_kernels.py, byte for byte.

#if defined(__CUDACC__)
#define DEVICE __device__ __forceinline__
#define ON_GPU 1
using u64 = unsigned long long;
#else
#include "warp_emulation.h"
#define ON_GPU 0
using u64 = unsigned long long;
#endif

using u8 = unsigned char;
using u32 = unsigned int;
using i32 = int;
using i64 = long long;

constexpr u32 EVERY_LANE = 0xffffffffu;
constexpr int MAX_LEVELS = 16;
constexpr int LEVELS_AT_ONCE = 4;  // of a thread: two features of each are the 32 bytes of one sector
constexpr u32 HASHED = 8;

// A product and a sum that are rounded one after the other, as torch does.
DEVICE float times_plus(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

DEVICE u32 item_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

DEVICE float clamped(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

// ------------------------------------------------------------------------------------------ grid encoding
struct GridLevel {
  float scale;    // cells per unit of [0, 1]
  u32 stride[3];  // rows per step along an axis, or the axis's prime of a hash
  u32 first;      // row
  u32 rows;
  u32 mask;  // wraps an address; 0: it needs a division
  u32 kind;  // axes that enter the address, and HASHED
};

struct GridArguments {
  const float* x;         // (N, D)
  const float* table;     // (rows, 2)
  const float* gradient;  // (N, 2 L), backward
  float* result;          // (N, 2 L), or (rows, 2) or (N, D) of a gradient
  u32 count;              // N
  u32 levels;
  u32 smoothstep;
  float bound;
  GridLevel level[MAX_LEVELS];
};

// Adds to a row of the table's gradient.
DEVICE void add_row(float* table, u32 row, float first, float second) {
  float* at = table + 2ull * row;
#if ON_GPU && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" : : "l"(at), "f"(first), "f"(second) : "memory");
#else
  atomicAdd(at, first);
  atomicAdd(at + 1, second);
#endif
}

// A point in [0, 1]^D, and whether it lies there.
template <int DIMENSIONS>
DEVICE bool unit_point(const GridArguments& grid, u32 n, float (&unit)[DIMENSIONS]) {
  const float inverse = 1.0f / (2.0f * grid.bound);
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < DIMENSIONS; axis++) {
    unit[axis] = __fmul_rn(__fadd_rn(grid.x[static_cast<u64>(n) * DIMENSIONS + axis], grid.bound), inverse);
    inside = inside && unit[axis] >= 0.0f && unit[axis] <= 1.0f;  // not a number is outside
  }
  return inside;
}

// Where a point lies on one level.
template <int AXES>
struct Place {
  u32 cell[AXES];
  float share[AXES];  // of the upper corner
  float slope[AXES];  // of the share, per unit of x

  template <int DIMENSIONS>
  DEVICE Place(const GridArguments& grid, const GridLevel& level, const float (&unit)[DIMENSIONS]) {
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      const float position = times_plus(unit[axis], level.scale, 0.5f);
      const float corner = floorf(position);
      const float fraction = position - corner;
      cell[axis] = static_cast<u32>(corner);
      share[axis] = grid.smoothstep ? fraction * fraction * (3.0f - 2.0f * fraction) : fraction;
      slope[axis] = level.scale / (2.0f * grid.bound);
      if (grid.smoothstep) slope[axis] *= 6.0f * fraction * (1.0f - fraction);
    }
  }

  // The table's row of a corner; bit `axis` of its number tells the upper side.
  DEVICE u32 row(const GridLevel& level, int corner) const {
    u32 address = 0;
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      const u32 term = (cell[axis] + (corner >> axis & 1)) * level.stride[axis];
      address = level.kind & HASHED ? address ^ term : address + term;
    }
    address = level.mask != 0 ? address & level.mask : address % level.rows;
    return level.first + address;
  }

  DEVICE float part(int corner, int axis) const { return corner >> axis & 1 ? share[axis] : 1.0f - share[axis]; }

  DEVICE float weight(int corner) const {
    float product = part(corner, 0);
#pragma unroll
    for (int axis = 1; axis < AXES; axis++) product *= part(corner, axis);
    return product;
  }
};

// LEVELS_AT_ONCE levels' features of a point, as far as there are so many levels.
DEVICE void read_features(const GridArguments& grid, const float* rows, u32 n, u32 first, float2* features) {
  const float* from = rows + (static_cast<u64>(n) * grid.levels + first) * 2;
  if (grid.levels % 2 == 0 && first + LEVELS_AT_ONCE <= grid.levels) {
#pragma unroll
    for (int i = 0; i < LEVELS_AT_ONCE; i += 2) {
      const float4 four = *reinterpret_cast<const float4*>(from + 2 * i);
      features[i] = float2{four.x, four.y};
      features[i + 1] = float2{four.z, four.w};
    }
  } else {
#pragma unroll
    for (int i = 0; i < LEVELS_AT_ONCE; i++) {
      const bool exists = first + i < grid.levels;
      features[i] = exists ? *reinterpret_cast<const float2*>(from + 2 * i) : float2{0.0f, 0.0f};
    }
  }
}

DEVICE void write_features(const GridArguments& grid, u32 n, u32 first, const float2* features) {
  float* to = grid.result + (static_cast<u64>(n) * grid.levels + first) * 2;
  if (grid.levels % 2 == 0 && first + LEVELS_AT_ONCE <= grid.levels) {
#pragma unroll
    for (int i = 0; i < LEVELS_AT_ONCE; i += 2)
      *reinterpret_cast<float4*>(to + 2 * i) =
          float4{features[i].x, features[i].y, features[i + 1].x, features[i + 1].y};
  } else {
#pragma unroll
    for (int i = 0; i < LEVELS_AT_ONCE; i++)
      if (first + i < grid.levels) *reinterpret_cast<float2*>(to + 2 * i) = features[i];
  }
}

template <int AXES, int DIMENSIONS>
DEVICE float2 level_features(const GridArguments& grid, const GridLevel& level, const float (&unit)[DIMENSIONS]) {
  const Place<AXES> place(grid, level, unit);
  float2 sum = {0.0f, 0.0f};
#pragma unroll
  for (int corner = 0; corner < 1 << AXES; corner++) {
    const float2 value = __ldg(reinterpret_cast<const float2*>(grid.table) + place.row(level, corner));
    const float weight = place.weight(corner);
    sum.x += weight * value.x;
    sum.y += weight * value.y;
  }
  return sum;
}

// A block's levels, and its thread's point. Blocks of the same levels follow each other.
struct Share {
  u32 n;
  u32 first_level;

  DEVICE explicit Share(u32 count) {
    const u32 blocks = (count + blockDim.x - 1) / blockDim.x;
    n = blockIdx.x % blocks * blockDim.x + threadIdx.x;
    first_level = blockIdx.x / blocks * LEVELS_AT_ONCE;
  }
};

template <int DIMENSIONS>
DEVICE void encode(const GridArguments& grid) {
  const Share share(grid.count);
  if (share.n >= grid.count) return;
  float unit[DIMENSIONS];
  float2 features[LEVELS_AT_ONCE] = {};
  if (unit_point(grid, share.n, unit)) {
#pragma unroll
    for (int i = 0; i < LEVELS_AT_ONCE; i++) {
      if (share.first_level + i >= grid.levels) break;
      const GridLevel& level = grid.level[share.first_level + i];
      const u32 axes = level.kind & 7;
      if (axes == 1) {
        features[i] = level_features<1>(grid, level, unit);
      } else if (axes == 2) {
        features[i] = level_features<2>(grid, level, unit);
      } else if constexpr (DIMENSIONS > 2) {
        features[i] = level_features<3>(grid, level, unit);
      }
    }
  }
  write_features(grid, share.n, share.first_level, features);
}

// Adds what a warp's lanes give to one level of the table's gradient. Lanes beside each other that lie in the same
// cell, as the samples of a ray on a coarse level do, are summed first: their rows would be waited for in turn.
template <int AXES, int DIMENSIONS>
DEVICE void add_level(const GridArguments& grid, const GridLevel& level, bool active,
                      const float (&unit)[DIMENSIONS], float2 gradient) {
  constexpr int CORNERS = 1 << AXES;
  const int lane = static_cast<int>(threadIdx.x & 31u);
  const Place<AXES> place(grid, level, unit);
  bool head = lane == 0;
#pragma unroll
  for (int axis = 0; axis < AXES; axis++)
    head = (__shfl_up_sync(EVERY_LANE, place.cell[axis], 1) != place.cell[axis]) || head;
  const u32 working = __ballot_sync(EVERY_LANE, active);
  head = head || !active || !(working >> (lane - 1) & 1);
  const u32 heads = __ballot_sync(EVERY_LANE, head);
  float2 sums[CORNERS];
#pragma unroll
  for (int corner = 0; corner < CORNERS; corner++) {
    const float weight = active ? place.weight(corner) : 0.0f;
    sums[corner] = float2{weight * gradient.x, weight * gradient.y};
  }
  if (__popc(heads) <= 24) {
    const u32 later = lane == 31 ? 0u : heads >> (lane + 1);
    const int end = later == 0 ? 32 : lane + __ffs(static_cast<int>(later));
    for (int distance = 1; distance < 32; distance *= 2) {
      const bool joined = lane + distance < end;
      if (!__any_sync(EVERY_LANE, joined)) break;
#pragma unroll
      for (int corner = 0; corner < CORNERS; corner++) {
        const float first = __shfl_down_sync(EVERY_LANE, sums[corner].x, distance);
        const float second = __shfl_down_sync(EVERY_LANE, sums[corner].y, distance);
        if (joined) sums[corner].x += first, sums[corner].y += second;
      }
    }
    active = active && head;
  }
  if (!active) return;
#pragma unroll
  for (int corner = 0; corner < CORNERS; corner++)
    add_row(grid.result, place.row(level, corner), sums[corner].x, sums[corner].y);
}

template <int DIMENSIONS>
DEVICE void encode_table_gradient(const GridArguments& grid) {
  const Share share(grid.count);
  const bool exists = share.n < grid.count;
  float unit[DIMENSIONS] = {};
  float2 gradient[LEVELS_AT_ONCE] = {};
  const bool inside = exists && unit_point(grid, share.n, unit);
  if (inside) {
    read_features(grid, grid.gradient, share.n, share.first_level, gradient);
  } else {
#pragma unroll
    for (int axis = 0; axis < DIMENSIONS; axis++) unit[axis] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < LEVELS_AT_ONCE; i++) {
    if (share.first_level + i >= grid.levels) break;
    const GridLevel& level = grid.level[share.first_level + i];
    const bool active = gradient[i].x != 0.0f || gradient[i].y != 0.0f;
    if (!__any_sync(EVERY_LANE, active)) continue;
    const u32 axes = level.kind & 7;
    if (axes == 1) {
      add_level<1>(grid, level, active, unit, gradient[i]);
    } else if (axes == 2) {
      add_level<2>(grid, level, active, unit, gradient[i]);
    } else if constexpr (DIMENSIONS > 2) {
      add_level<3>(grid, level, active, unit, gradient[i]);
    }
  }
}

template <int AXES, int DIMENSIONS>
DEVICE void point_gradient_level(const GridArguments& grid, const GridLevel& level,
                                 const float (&unit)[DIMENSIONS], float2 gradient, float (&sums)[DIMENSIONS]) {
  const Place<AXES> place(grid, level, unit);
#pragma unroll
  for (int corner = 0; corner < 1 << AXES; corner++) {
    const float2 value = __ldg(reinterpret_cast<const float2*>(grid.table) + place.row(level, corner));
    const float product = gradient.x * value.x + gradient.y * value.y;
#pragma unroll
    for (int axis = 0; axis < AXES; axis++) {
      float term = corner >> axis & 1 ? product * place.slope[axis] : -product * place.slope[axis];
#pragma unroll
      for (int other = 0; other < AXES; other++)
        if (other != axis) term *= place.part(corner, other);
      sums[axis] += term;
    }
  }
}

template <int DIMENSIONS>
DEVICE void encode_point_gradient(const GridArguments& grid) {
  const u32 n = item_number();
  if (n >= grid.count) return;
  float unit[DIMENSIONS], sums[DIMENSIONS] = {};
  if (unit_point(grid, n, unit)) {
    for (u32 first = 0; first < grid.levels; first += LEVELS_AT_ONCE) {
      float2 gradient[LEVELS_AT_ONCE];
      read_features(grid, grid.gradient, n, first, gradient);
#pragma unroll
      for (int i = 0; i < LEVELS_AT_ONCE; i++) {
        if (first + i >= grid.levels) break;
        const GridLevel& level = grid.level[first + i];
        const u32 axes = level.kind & 7;
        if (axes == 1) {
          point_gradient_level<1>(grid, level, unit, gradient[i], sums);
        } else if (axes == 2) {
          point_gradient_level<2>(grid, level, unit, gradient[i], sums);
        } else if constexpr (DIMENSIONS > 2) {
          point_gradient_level<3>(grid, level, unit, gradient[i], sums);
        }
      }
    }
  }
#pragma unroll
  for (int axis = 0; axis < DIMENSIONS; axis++)
    grid.result[static_cast<u64>(n) * DIMENSIONS + axis] = sums[axis];
}

extern "C" __global__ void encode_2d(const GridArguments grid) { encode<2>(grid); }
extern "C" __global__ void encode_table_gradient_2d(const GridArguments grid) { encode_table_gradient<2>(grid); }
extern "C" __global__ void encode_point_gradient_2d(const GridArguments grid) { encode_point_gradient<2>(grid); }
extern "C" __global__ void encode_3d(const GridArguments grid) { encode<3>(grid); }
extern "C" __global__ void encode_table_gradient_3d(const GridArguments grid) { encode_table_gradient<3>(grid); }
extern "C" __global__ void encode_point_gradient_3d(const GridArguments grid) { encode_point_gradient<3>(grid); }

// ------------------------------------------------------------------------------------------ marching
struct MarchArguments {
  const float* rays_o;     // (N, 3)
  const float* rays_d;     // (N, 3)
  const float* near;       // (N,)
  const float* far;        // (N,)
  const float* phase;      // (N,) or null
  const u8* occupancy;     // (size, size, size)
  float* t;                // (N, S)
  u8* mask;                // (N, S)
  i32* counts;             // (N,)
  u32 rays;
  u32 size;
  u32 points;
  u32 max_steps;  // S
  float step;
  float bound;
};

DEVICE float along(const float* rays_o, const float* rays_d, u64 place, float t, float bound) {
  return clamped(__fadd_rn(rays_o[place], __fmul_rn(t, rays_d[place])), -bound, bound);
}

DEVICE u32 cell_of(float p, float inverse_bound, float size) {
  const float scaled = __fmul_rn(__fmul_rn(0.5f, __fadd_rn(__fmul_rn(p, inverse_bound), 1.0f)), size);
  return static_cast<u32>(clamped(scaled, 0.0f, size - 1.0f));
}

// The first S lattice points of each ray that lie in occupied cells. One thread a ray.
extern "C" __global__ void march_rays(const MarchArguments march) {
  const u32 n = item_number();
  if (n >= march.rays) return;
  const u64 ray = 3ull * n;
  const float o[3] = {march.rays_o[ray], march.rays_o[ray + 1], march.rays_o[ray + 2]};
  const float d[3] = {march.rays_d[ray], march.rays_d[ray + 1], march.rays_d[ray + 2]};
  const float far = march.far[n], size = static_cast<float>(march.size), inverse = 1.0f / march.bound;
  float start = march.near[n];
  if (march.phase != nullptr) start = __fadd_rn(start, __fmul_rn(march.phase[n], march.step));
  float* t_row = march.t + static_cast<u64>(n) * march.max_steps;
  u8* mask_row = march.mask + static_cast<u64>(n) * march.max_steps;
  u32 found = 0;
  for (u32 k = 0; k < march.points && found < march.max_steps; k++) {
    const float t = __fadd_rn(start, __fmul_rn(static_cast<float>(k), march.step));
    if (!(t < far)) break;
    u32 cell = 0;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      const float p = clamped(__fadd_rn(o[axis], __fmul_rn(t, d[axis])), -march.bound, march.bound);
      cell = cell * march.size + cell_of(p, inverse, size);
    }
    if (__ldg(march.occupancy + cell) != 0) {
      t_row[found] = t;
      mask_row[found] = 1;
      found++;
    }
  }
  march.counts[n] = static_cast<i32>(found);
  for (; found < march.max_steps; found++) {
    t_row[found] = 0.0f;
    mask_row[found] = 0;
  }
}

struct PackArguments {
  const float* rays_o;  // (N, 3)
  const float* rays_d;  // (N, 3)
  const float* t;       // (N, S)
  const i32* ends;      // (N,)
  i64* slots;           // (M,)
  u8* valid;            // (M,)
  i64* ray;             // (M,)
  float* positions;     // (M, 3)
  u8* fits;             // (N,)
  i64* wanted;          // ()
  u32 rays;             // N, at least 1
  u32 max_steps;        // S
  u32 capacity;         // M
  float bound;
};

DEVICE void write_sample(const PackArguments& pack, u32 place, u32 slot, bool valid) {
  const u32 n = slot / pack.max_steps;
  pack.slots[place] = slot;
  pack.valid[place] = valid;
  pack.ray[place] = n;
#pragma unroll
  for (int axis = 0; axis < 3; axis++)
    pack.positions[3ull * place + axis] = along(pack.rays_o, pack.rays_d, 3ull * n + axis, pack.t[slot], pack.bound);
}

// All samples in one row, in the order of the rays; the unused end repeats slot 0. One thread for each of the N S
// slots or M places, whichever are more.
extern "C" __global__ void pack_samples(const PackArguments pack) {
  const u32 i = item_number();
  const u32 total = static_cast<u32>(pack.ends[pack.rays - 1]);
  if (i == 0) *pack.wanted = total;
  if (i < pack.capacity && i >= total) write_sample(pack, i, 0, false);
  const u32 n = i / pack.max_steps, k = i % pack.max_steps;
  if (n >= pack.rays) return;
  const u32 end = static_cast<u32>(pack.ends[n]), begin = n == 0 ? 0 : static_cast<u32>(pack.ends[n - 1]);
  if (k == 0) pack.fits[n] = end <= pack.capacity;
  const u32 place = begin + k;
  if (place < end && place < pack.capacity) write_sample(pack, place, i, true);
}

// ------------------------------------------------------------------------------------------ compositing
struct CompositeArguments {
  const float* values;  // (M, 5): density, red, green, blue, ambient
  const float* t;       // (N, S)
  const i32* ends;      // (N,)
  float* image;         // (N, 3)
  float* weights_sum;   // (N,)
  float* depth;         // (N,)
  float* ambient;       // (N,)
  float* centre;        // (N,)
  float* spread;        // (N,)
  float* weights;       // (M,), zero before
  i32* live;            // (N,)
  u32 rays;
  u32 max_steps;
  u32 capacity;
  float step;
  float stop_transmittance;
};

// Where a ray's samples lie in the row, how many there are, and how many of them had room.
struct Run {
  u32 begin, count, have;

  DEVICE Run(const i32* ends, u32 n, u32 capacity) {
    const u32 end = static_cast<u32>(ends[n]);
    begin = n == 0 ? 0 : static_cast<u32>(ends[n - 1]);
    count = end - begin;
    have = begin >= capacity ? 0 : (end < capacity ? end : capacity) - begin;
  }
};

// Front to back along each ray. One thread a ray.
extern "C" __global__ void composite_rays(const CompositeArguments rays) {
  const u32 n = item_number();
  if (n >= rays.rays) return;
  const Run run(rays.ends, n, rays.capacity);
  const float* t = rays.t + static_cast<u64>(n) * rays.max_steps;
  const float* values = rays.values + 5ull * run.begin;
  float* weights = rays.weights + run.begin;
  float optical = 0.0f, before = 1.0f;
  float red = 0.0f, green = 0.0f, blue = 0.0f, sum = 0.0f, depth = 0.0f, ambient = 0.0f, deep = 0.0f;
  const float first = run.count > 0 ? t[0] : 0.0f;
  u32 k = 0;
  for (; k < run.have && before >= rays.stop_transmittance; k++) {
    const float* value = values + 5 * k;
    const float own = value[0] * rays.step;
    const float weight = (1.0f - expf(-own)) * before;
    weights[k] = weight;
    red += weight * value[1];
    green += weight * value[2];
    blue += weight * value[3];
    ambient += value[4];
    sum += weight;
    depth += weight * (t[k] + rays.step);
    deep += weight * ((t[k] - first) / rays.step);
    optical += own;
    before = expf(-optical);
  }
  const float centre = deep / fmaxf(sum, 1e-5f);
  float spread = 0.0f;
  for (u32 i = 0; i < k; i++) {
    const float apart = (t[i] - first) / rays.step - centre;
    spread += weights[i] * apart * apart;
  }
  // What had no room counts as empty space that was looked at.
  rays.live[n] = static_cast<i32>(before >= rays.stop_transmittance ? run.count : k);
  rays.image[3ull * n] = red, rays.image[3ull * n + 1] = green, rays.image[3ull * n + 2] = blue;
  rays.weights_sum[n] = sum;
  rays.depth[n] = depth;
  rays.ambient[n] = ambient;
  rays.centre[n] = centre;
  rays.spread[n] = spread;
}

struct CompositeGradientArguments {
  const float* values;        // (M, 5)
  const float* t;             // (N, S)
  const i32* ends;            // (N,)
  const float* centre;        // (N,)
  const float* weights;       // (M,)
  const i32* live;            // (N,)
  const float* image;         // (N, 3), and so on: gradients
  const float* weights_sum;   // (N,)
  const float* depth;         // (N,)
  const float* ambient;       // (N,)
  const float* spread;        // (N,)
  float* result;              // (M, 5), zero before
  u32 rays;
  u32 max_steps;
  u32 capacity;
  float step;
};

// The gradient of the values. One thread a ray: forward for what passes each sample, then back from the last one.
extern "C" __global__ void composite_gradient(const CompositeGradientArguments rays) {
  const u32 n = item_number();
  if (n >= rays.rays) return;
  const Run run(rays.ends, n, rays.capacity);
  const u32 seen = static_cast<u32>(rays.live[n]);
  const u32 live = seen < run.have ? seen : run.have;
  if (live == 0) return;
  const float* t = rays.t + static_cast<u64>(n) * rays.max_steps;
  const float* values = rays.values + 5ull * run.begin;
  const float* weights = rays.weights + run.begin;
  float* result = rays.result + 5ull * run.begin;
  float optical = 0.0f;
  for (u32 k = 0; k < live; k++) {
    optical += values[5 * k] * rays.step;
    result[5 * k] = expf(-optical);
  }
  const float red = rays.image[3ull * n], green = rays.image[3ull * n + 1], blue = rays.image[3ull * n + 2];
  const float sum = rays.weights_sum[n], depth = rays.depth[n], ambient = rays.ambient[n];
  const float spread = rays.spread[n], centre = rays.centre[n], first = t[0];
  float behind = 0.0f;  // what all samples behind this one give, by their weights
  for (u32 k = live; k-- > 0;) {
    const float* value = values + 5 * k;
    float* own = result + 5 * k;
    const float weight = weights[k], apart = (t[k] - first) / rays.step - centre;
    const float gives = red * value[1] + green * value[2] + blue * value[3] + sum + depth * (t[k] + rays.step) +
                        spread * apart * apart;
    own[0] = rays.step * (gives * own[0] - behind);
    own[1] = red * weight;
    own[2] = green * weight;
    own[3] = blue * weight;
    own[4] = ambient;
    behind += gives * weight;
  }
}
