// Head, torso and background of any number of frames in one launch.
//
// First the rays. A warp takes chunks of 32 of a frame and marches each ray to its first occupied lattice point;
// those that have one go on a stack. 32 samples at a time pass through grids and networks, one a lane; where a
// ray has ended the next from the stack follows, so that the matrix products stay full. What a ray saw is written
// to the frame's pixels and counted in its chunk.
//
// When no rays are left to take, those in hand move together, and the lanes that this frees take their next samples:
// up to eight lanes have consecutive samples of one ray, some of them in vain behind the one that ends it. The
// longest rays would else end long after the others.
//
// Then warps finish chunks: they wait until all pixels of one are counted, lay torso and background behind them, and
// write the picture's bytes. Nobody waits with rays in hand, so all waiting ends.
//
// A chunk is two blocks of 4 x 4 pixels: neighbours where a part of the picture is drawn whole, any two where only
// listed blocks are drawn over a plate. Who takes a chunk's rays copies its share of the plate too; the blocks are
// written once all of it is there, and fade into it within the outermost ones.
//
// What a lane computes for a ray does not depend on the ray's neighbours: a picture is the same bit for bit
// however it is cut into parts and launches.
//
// Compiled once for each width of the head's networks:
//   WIDTH              32, 64, 96 or 128
//   WARPS              warps of a block; one block is meant for a multiprocessor
//   WEIGHTS_IN_SHARED  1: the head's weights are copied to shared memory; 0: they come through the L1 cache
#include "raymarcher_scene.cuh"

constexpr u32 BLOCK_SIDE = 4, BLOCK_PIXELS = BLOCK_SIDE * BLOCK_SIDE;
constexpr u32 ALL_CORNERS = 15;
constexpr int MAX_SAMPLES_AT_ONCE = 8;  // of a ray
constexpr int FEATURE_TILES = 2;  // a grid's features, 16 levels of two, are two tiles of inputs
constexpr int HIDDEN_TILES = WIDTH / 16;
constexpr int DEFORM_TILES = TORSO_DEFORM_WIDTH / 16;
constexpr int CANONICAL_TILES = TORSO_CANONICAL_WIDTH / 16;
constexpr int FREQUENCY_TILES = 3;  // 2 + 4 * TORSO_OCTAVES inputs, padded to 48

constexpr int AMBIENT_UINT4S = hidden_uint4s(FEATURE_TILES, HIDDEN_TILES) +
                               hidden_uint4s(HIDDEN_TILES, HIDDEN_TILES) + last_uint4s(HIDDEN_TILES);
constexpr int SIGMA_UINT4S = hidden_uint4s(2 * FEATURE_TILES, HIDDEN_TILES) +
                             hidden_uint4s(HIDDEN_TILES, HIDDEN_TILES) + last_uint4s(HIDDEN_TILES);
constexpr int COLOR_UINT4S = hidden_uint4s(HIDDEN_TILES + 1, HIDDEN_TILES) + last_uint4s(HIDDEN_TILES);
constexpr int HEAD_UINT4S = AMBIENT_UINT4S + SIGMA_UINT4S + COLOR_UINT4S;

// One sample's row: 32 halves of the position grid (later the direction's harmonics), 32 of the ambient grid,
// and four floats that come out. 144 bytes: rows start in different banks.
struct alignas(16) SampleRow {
  uint4 position[4];
  uint4 ambient[4];
  float4 out;
};

struct WarpMemory {
  SampleRow rows[32];
  union {
    uint2 stack[64];  // rays to draw: place among the frame's pixels, and first lattice step
    u32 list[32];     // lanes with a ray; of a chunk, pixels in which the torso shows, later red, green and blue
  };
};

constexpr float MAX_STEPS = 1e6f;  // of a lattice

struct Ray {
  float dx, dy, dz;
  float near;
  int first, end;  // lattice steps
};

// ------------------------------------------------------------------------------------------ small maths
DEVICE float clamped(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

DEVICE float to_unit(float x) { return 1.0f - __fdividef(1.0f, 1.0f + __expf(2.0f * x)); }  // (tanh x + 1) / 2

DEVICE u32 to_16_bits(float low, float high) {
  const u32 a = static_cast<u32>(clamped(low, 0.0f, 1.0f) * 65535.0f + 0.5f);
  const u32 b = static_cast<u32>(clamped(high, 0.0f, 1.0f) * 65535.0f + 0.5f);
  return a | (b << 16);
}

DEVICE float4 from_16_bits(uint2 packed) {
  constexpr float unit = 1.0f / 65535.0f;
  return float4{static_cast<float>(packed.x & 0xffffu) * unit, static_cast<float>(packed.x >> 16) * unit,
                static_cast<float>(packed.y & 0xffffu) * unit, static_cast<float>(packed.y >> 16) * unit};
}

// ------------------------------------------------------------------------------------------ grids
struct Corner {
  u32 cell;
  u32 fraction;  // twice, as halves
};

DEVICE Corner corner_of(float coordinate, float scale) {
  const float position = fmaf(coordinate, scale, 0.5f);
  const u32 cell = static_cast<u32>(position);
  const float fraction = position - static_cast<float>(cell);
  return Corner{cell, half_pair(fraction, fraction)};
}

// The features of a row and its neighbours in x, y and both, blended.
DEVICE u32 blended_cell(const uint4* cells, u32 row, u32 weight_x, u32 weight_y) {
  const uint4 cell = __ldg(cells + row);
  return blend_pairs(blend_pairs(cell.x, cell.y, weight_x), blend_pairs(cell.z, cell.w, weight_x), weight_y);
}

// Two features of one level at coordinates in [0, 1].
template <bool WITH_Z>
DEVICE u32 level_features(const uint4* cells, const Level& level, float x, float y, float z) {
  const Corner cx = corner_of(x, level.scale), cy = corner_of(y, level.scale);
  const uint4* own = cells + level.start;
  const u32 first = cx.cell + cy.cell * level.stride_y;
  if (!WITH_Z) return blended_cell(own, first & level.mask, cx.fraction, cy.fraction);
  const Corner cz = corner_of(z, level.scale);
  const u32 front = first + cz.cell * level.stride_z, back = front + level.stride_z;
  return blend_pairs(blended_cell(own, front & level.mask, cx.fraction, cy.fraction),
                     blended_cell(own, back & level.mask, cx.fraction, cy.fraction), cz.fraction);
}

// All levels of a grid into 16 pairs of features; levels that the grid lacks are zero.
DEVICE void encode(const Grid& grid, float x, float y, float z, uint4* features) {
  const uint4* cells = grid.cells;
  const int with_z = static_cast<int>(grid.levels_with_z), levels = static_cast<int>(grid.levels);
#pragma unroll 1
  for (int first = 0; first < MAX_LEVELS; first += 4) {
    u32 four[4];
    if (first + 4 <= with_z) {
#pragma unroll
      for (int i = 0; i < 4; i++) four[i] = level_features<true>(cells, grid.level[first + i], x, y, z);
    } else if (first >= with_z && first + 4 <= levels) {
#pragma unroll
      for (int i = 0; i < 4; i++) four[i] = level_features<false>(cells, grid.level[first + i], x, y, z);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Level& level = grid.level[first + i];
        four[i] = 0u;
        if (first + i < with_z) {
          four[i] = level_features<true>(cells, level, x, y, z);
        } else if (first + i < levels) {
          four[i] = level_features<false>(cells, level, x, y, z);
        }
      }
    }
    features[first / 4] = uint4{four[0], four[1], four[2], four[3]};  // 16 bytes a lane: no two share a bank
  }
}

// ------------------------------------------------------------------------------------------ rays
DEVICE void narrow(float low, float high, float origin, float inverse, float& near, float& far) {
  const float a = (low - origin) * inverse, b = (high - origin) * inverse;
  near = fmaxf(near, fminf(a, b));
  far = fminf(far, fmaxf(a, b));
}

DEVICE float inverse_of(float d) { return 1.0f / (fabsf(d) < 1e-15f ? 1e-15f : d); }

// The ray through a pixel of the drawn picture.
DEVICE Ray make_ray(const Scene& scene, const Frame& frame, u32 column, u32 row) {
  const float* p = frame.pose;
  const float u = (static_cast<float>(column) + 0.5f - frame.cx_px) / frame.focal_px;
  const float v = (static_cast<float>(row) + 0.5f - frame.cy_px) / frame.focal_px;
  const float length = 1.0f / sqrtf(u * u + v * v + 1.0f);
  Ray ray;
  ray.dx = (p[0] * u + p[1] * v + p[2]) * length;
  ray.dy = (p[4] * u + p[5] * v + p[6]) * length;
  ray.dz = (p[8] * u + p[9] * v + p[10]) * length;
  const float ix = inverse_of(ray.dx), iy = inverse_of(ray.dy), iz = inverse_of(ray.dz);
  float near = -3.0e38f, far = 3.0e38f, first = -3.0e38f, last = 3.0e38f;
  narrow(scene.aabb[0], scene.aabb[3], p[3], ix, near, far);
  narrow(scene.aabb[1], scene.aabb[4], p[7], iy, near, far);
  narrow(scene.aabb[2], scene.aabb[5], p[11], iz, near, far);
  narrow(scene.box[0], scene.box[3], p[3], ix, first, last);
  narrow(scene.box[1], scene.box[4], p[7], iy, first, last);
  narrow(scene.box[2], scene.box[5], p[11], iz, first, last);
  const bool hit = near <= far && first <= last;
  near = fmaxf(near, scene.min_near);
  // Lattice points before and after the box around all that is occupied are empty; one more is kept on either
  // side for rounding. Bounded before they become whole numbers: a miss may be far away.
  const float start = floorf((first - near) / scene.step);
  const float end = fminf(ceilf((far - near) / scene.step), floorf((last - near) / scene.step) + 2.0f);
  ray.near = near;
  ray.first = static_cast<int>(clamped(start, 0.0f, MAX_STEPS));
  ray.end = hit ? static_cast<int>(clamped(end, 0.0f, MAX_STEPS)) : 0;
  return ray;
}

// The first lattice step from k on whose point lies in an occupied cell, or -1.
DEVICE int next_occupied(const Scene& scene, const Frame& frame, const Ray& ray, int k) {
  const int side = static_cast<int>(scene.side);
  const float top = static_cast<float>(side - 1), middle = 0.5f * static_cast<float>(side);
  const float cells = middle / scene.bound;  // per unit of length
  const float step = scene.step * cells, lead = ray.near * cells;
  const float vx = ray.dx * step, vy = ray.dy * step, vz = ray.dz * step;
  const float x0 = frame.pose[3] * cells + middle + ray.dx * lead;
  const float y0 = frame.pose[7] * cells + middle + ray.dy * lead;
  const float z0 = frame.pose[11] * cells + middle + ray.dz * lead;
  // A hair less than one over the largest step: rounding may cost a look at an empty cell, never skip a full one.
  const float steps_a_cell = __fdividef(0.9999f, fmaxf(fabsf(vx), fmaxf(fabsf(vy), fabsf(vz))));
  while (k < ray.end) {
    const float n = static_cast<float>(k);
    const int ix = static_cast<int>(clamped(fmaf(n, vx, x0), 0.0f, top));
    const int iy = static_cast<int>(clamped(fmaf(n, vy, y0), 0.0f, top));
    const int iz = static_cast<int>(clamped(fmaf(n, vz, z0), 0.0f, top));
    const int distance = __ldg(scene.distance + ((ix * side + iy) * side + iz));
    if (distance == 0) return k;
    k += 1 + static_cast<int>(static_cast<float>(distance - 1) * steps_a_cell);
  }
  return -1;
}

// ------------------------------------------------------------------------------------------ lanes and rows
DEVICE int lanes_below(u32 lanes, int lane) { return __popc(lanes & ((1u << lane) - 1u)); }

// Both tiles of 16 rows, from the 16 inputs that begin at a pair of the rows.
DEVICE void load_rows(const WarpMemory& memory, int first_pair, int lane, Fragment& upper, Fragment& lower) {
  const u32* pair = reinterpret_cast<const u32*>(memory.rows + (lane & 15)) + first_pair + (lane >> 4) * 4;
  constexpr int sixteen_rows = 16 * static_cast<int>(sizeof(SampleRow) / sizeof(u32));
  load_fragment(upper, pair);
  load_fragment(lower, pair + sixteen_rows);
}

// Up to four outputs of each sample from the lanes that hold them into the sample's row.
DEVICE void store_outputs(WarpMemory& memory, const Sums (&sums)[ROW_TILES], int lane) {
  const int t = lane & 3;
  if (t > 1) return;
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float2* out = reinterpret_cast<float2*>(&memory.rows[16 * m + 8 * half + (lane >> 2)].out);
      out[t] = float2{sums[m].at[2 * half], sums[m].at[2 * half + 1]};
    }
}

// The direction's spherical harmonics up to degree 3 as 16 halves; the first, a constant, is replaced by one.
DEVICE void store_harmonics(uint4* pairs, float x, float y, float z) {
  const float xx = x * x, yy = y * y, zz = z * z;
  pairs[0] = uint4{half_pair(1.0f, -0.48860251190291987f * y),
                   half_pair(0.48860251190291987f * z, -0.48860251190291987f * x),
                   half_pair(1.0925484305920792f * x * y, -1.0925484305920792f * y * z),
                   half_pair(0.94617469575755997f * zz - 0.31539156525251999f, -1.0925484305920792f * x * z)};
  pairs[1] = uint4{half_pair(0.54627421529603959f * (xx - yy), 0.59004358992664352f * y * (yy - 3.0f * xx)),
                   half_pair(2.8906114426405538f * x * y * z, 0.45704579946446572f * y * (1.0f - 5.0f * zz)),
                   half_pair(0.3731763325901154f * z * (5.0f * zz - 3.0f),
                             0.45704579946446572f * x * (1.0f - 5.0f * zz)),
                   half_pair(1.4453057213202769f * z * (xx - yy), 0.59004358992664352f * x * (3.0f * yy - xx))};
}

// ------------------------------------------------------------------------------------------ head
// Red, green, blue (before their sigmoid) and log density of the sample of each lane, at x, y, z in [0, 1].
DEVICE float4 field_at(const Scene& scene, const Frame& frame, Weights<WEIGHTS_IN_SHARED> weights,
                       WarpMemory& memory, int lane, const Ray& ray, float x, float y, float z) {
  SampleRow& own = memory.rows[lane];
  encode(scene.position, x, y, z, own.position);
  __syncwarp();
  {
    Fragment features[ROW_TILES][FEATURE_TILES], hidden[ROW_TILES][HIDDEN_TILES];
    Sums coordinates[ROW_TILES];
#pragma unroll
    for (int k = 0; k < FEATURE_TILES; k++) load_rows(memory, 8 * k, lane, features[0][k], features[1][k]);
    hidden_layer<FEATURE_TILES, HIDDEN_TILES, Sums>(features, weights, frame.ambient_bias, lane, hidden);
    weights = weights.after(hidden_uint4s(FEATURE_TILES, HIDDEN_TILES));
    const Weights<WEIGHTS_IN_SHARED> last = weights.after(hidden_uint4s(HIDDEN_TILES, HIDDEN_TILES));
    last_two_layers<HIDDEN_TILES, HIDDEN_TILES, Sums>(hidden, weights, last, lane, coordinates);
    weights = last.after(last_uint4s(HIDDEN_TILES));
    store_outputs(memory, coordinates, lane);
  }
  __syncwarp();
  encode(scene.ambient, to_unit(own.out.x), to_unit(own.out.y), 0.0f, own.ambient);
  __syncwarp();
  Fragment looks[ROW_TILES][HIDDEN_TILES + 1];  // the sigma net's last hidden layer, and the harmonics
  {
    Fragment features[ROW_TILES][2 * FEATURE_TILES], hidden[ROW_TILES][HIDDEN_TILES];
#pragma unroll
    for (int k = 0; k < 2 * FEATURE_TILES; k++) load_rows(memory, 8 * k, lane, features[0][k], features[1][k]);
    hidden_layer<2 * FEATURE_TILES, HIDDEN_TILES, HalfSums>(features, weights, nullptr, lane, hidden);
    weights = weights.after(hidden_uint4s(2 * FEATURE_TILES, HIDDEN_TILES));
    hidden_layer<HIDDEN_TILES, HIDDEN_TILES, HalfSums>(hidden, weights, nullptr, lane, looks);
    weights = weights.after(hidden_uint4s(HIDDEN_TILES, HIDDEN_TILES));
  }
  Sums density[ROW_TILES], color[ROW_TILES];
  last_layer<HIDDEN_TILES>(looks, weights, lane, density);
  weights = weights.after(last_uint4s(HIDDEN_TILES));
  store_harmonics(own.position, ray.dx, ray.dy, ray.dz);  // all lanes have loaded their features by now
  __syncwarp();
  load_rows(memory, 0, lane, looks[0][HIDDEN_TILES], looks[1][HIDDEN_TILES]);
  const Weights<WEIGHTS_IN_SHARED> last = weights.after(hidden_uint4s(HIDDEN_TILES + 1, HIDDEN_TILES));
  last_two_layers<HIDDEN_TILES + 1, HIDDEN_TILES, HalfSums>(looks, weights, last, lane, color);
  // The density, the first column of its sums, becomes the fourth of the colours' (their lanes hold column 3).
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
    const float low = __shfl_sync(ALL_LANES, density[m].at[0], lane & ~3);
    const float high = __shfl_sync(ALL_LANES, density[m].at[2], lane & ~3);
    if ((lane & 3) == 1) {
      color[m].at[1] = low;
      color[m].at[3] = high;
    }
  }
  store_outputs(memory, color, lane);
  __syncwarp();
  return own.out;
}

// Where a pixel of a frame lies in the picture.
struct Pixel {
  u32 column, row;
  u32 corners;  // of its block, upper left, upper right, lower left, lower right: where it hides the plate
  bool inside;  // of the part that is drawn
};

// The pixel of a place: its block, and 4 x 4 row by row.
DEVICE Pixel pixel_of(const Frame& frame, u32 place) {
  const u32 number = place / BLOCK_PIXELS;
  if (number >= frame.block_count) return Pixel{0u, 0u, 0u, false};
  Pixel pixel;
  if (frame.blocks == nullptr) {
    pixel.column = frame.x0 + number % frame.blocks_across * BLOCK_SIDE;
    pixel.row = frame.y0 + number / frame.blocks_across * BLOCK_SIDE;
    pixel.corners = ALL_CORNERS;
  } else {
    const u32 block = __ldg(frame.blocks + number);
    pixel.column = (block & 0xfffu) * BLOCK_SIDE;
    pixel.row = ((block >> 12) & 0xfffu) * BLOCK_SIDE;
    pixel.corners = block >> 24;
  }
  pixel.column += place % BLOCK_SIDE;
  pixel.row += place % BLOCK_PIXELS / BLOCK_SIDE;
  pixel.inside = pixel.column < frame.x0 + frame.width && pixel.row < frame.y0 + frame.height;
  return pixel;
}

// Writes what a ray saw.
DEVICE void store_pixel(const Frame& frame, u32 place, float red, float green, float blue, float through) {
  frame.pixels[place] = uint2{to_16_bits(red, green), to_16_bits(blue, through)};
}

// Copies a chunk's share of the plate. Plate and picture begin on 16 bytes and have room up to the next.
DEVICE void copy_plate(const Frame& frame, u32 chunk, int lane) {
  const uint4* const plate = reinterpret_cast<const uint4*>(frame.plate);
  uint4* const out = reinterpret_cast<uint4*>(frame.out);
  const u32 all = (frame.width * frame.height / 2u * 3u + 15u) / 16u;
  const u32 share = (all + frame.chunks - 1u) / frame.chunks, first = chunk * share;
  for (u32 i = static_cast<u32>(lane); i < share && first + i < all; i += 32u) out[first + i] = __ldg(plate + first + i);
  __syncwarp();
  if (lane == 0) add_after_writes(frame.done + frame.chunks, 1u);
}

// Marches the 32 rays of a chunk; those that meet anything go on the stack. How many are on it then.
DEVICE int set_up_chunk(const Scene& scene, const Frame& frame, WarpMemory& memory, int lane, u32 chunk, int stacked) {
  if (frame.plate != nullptr) copy_plate(frame, chunk, lane);
  const u32 place = chunk * 32u + static_cast<u32>(lane);
  const Pixel pixel = pixel_of(frame, place);
  int k = -1;
  if (pixel.inside) {
    const Ray ray = make_ray(scene, frame, pixel.column, pixel.row);
    k = next_occupied(scene, frame, ray, ray.first);
    if (k < 0) store_pixel(frame, place, 0.0f, 0.0f, 0.0f, 1.0f);
  }
  const u32 hits = __ballot_sync(ALL_LANES, k >= 0), misses = __ballot_sync(ALL_LANES, pixel.inside && k < 0);
  if (k >= 0) memory.stack[stacked + lanes_below(hits, lane)] = uint2{place, static_cast<u32>(k)};
  __syncwarp();
  if (lane == 0 && misses != 0u) add_after_writes(frame.done + chunk, static_cast<u32>(__popc(misses)));
  return stacked + __popc(hits);
}

// The occupied lattice step that comes `ahead` occupied ones after the first from k on, or -1.
DEVICE int occupied_ahead(const Scene& scene, const Frame& frame, const Ray& ray, int k, int ahead) {
  k = next_occupied(scene, frame, ray, k);
  for (; ahead > 0 && k >= 0; ahead--) k = next_occupied(scene, frame, ray, k + 1);
  return k;
}

// Draws rays of a frame until none is left to take.
DEVICE void draw_rays(const Launch& launch, const Scene& scene, const Frame& frame, u32* taken_chunks,
                      Weights<WEIGHTS_IN_SHARED> weights, WarpMemory& memory, int lane) {
  const float bound = scene.bound, unit = 0.5f / bound, step = scene.step;
  // Lane slot + j rays_at_once has the ray of that slot, as all its other lanes do, and the j-th next sample of it.
  int samples_at_once = 1, rays_at_once = 32, slot = lane, ahead = 0;
  u32 slots = ALL_LANES;
  Ray ray = {};
  bool living = false, more = true;
  u32 place = 0, samples = 0, passes = 0;
  int k = -1, taken = 0, stacked = 0;  // k: lattice step of the lane's sample, -1 if the ray has none left for it
  float red = 0.0f, green = 0.0f, blue = 0.0f, through = 1.0f;
  for (;;) {
    const u32 idle = __ballot_sync(ALL_LANES, !living) & slots;
    const int wanted = __popc(idle);
    while (more && stacked < wanted) {
      u32 chunk = 0u;
      if (lane == 0) chunk = atomicAdd(taken_chunks, 1u);
      chunk = __shfl_sync(ALL_LANES, chunk, 0);
      more = chunk < frame.chunks;
      if (more) stacked = set_up_chunk(scene, frame, memory, lane, chunk, stacked);
    }
    const int rank = lanes_below(idle, slot);
    if (!living && rank < stacked) {
      const uint2 entry = memory.stack[stacked - 1 - rank];
      place = entry.x;
      const Pixel pixel = pixel_of(frame, place);
      ray = make_ray(scene, frame, pixel.column, pixel.row);
      k = occupied_ahead(scene, frame, ray, static_cast<int>(entry.y), ahead);
      living = true;
      taken = 0;
      red = green = blue = 0.0f;
      through = 1.0f;
    }
    stacked = stacked > wanted ? stacked - wanted : 0;
    const u32 rays = __ballot_sync(ALL_LANES, living) & slots;
    const int left = __popc(rays);
    if (left == 0) break;
    if (!more && stacked == 0 && 2 * left <= rays_at_once && samples_at_once < MAX_SAMPLES_AT_ONCE) {
      while (2 * left <= rays_at_once && samples_at_once < MAX_SAMPLES_AT_ONCE) {
        samples_at_once *= 2;
        rays_at_once /= 2;
      }
      __syncwarp();  // the stack, whose place the list takes, has been read
      if (((rays >> lane) & 1u) != 0u) memory.list[lanes_below(rays, lane)] = static_cast<u32>(lane);
      __syncwarp();
      slot = lane % rays_at_once;
      ahead = lane / rays_at_once;
      slots = ALL_LANES >> (32 - rays_at_once);
      living = slot < left;
      const int from = living ? static_cast<int>(memory.list[slot]) : lane;
      __syncwarp();
      ray.dx = __shfl_sync(ALL_LANES, ray.dx, from);
      ray.dy = __shfl_sync(ALL_LANES, ray.dy, from);
      ray.dz = __shfl_sync(ALL_LANES, ray.dz, from);
      ray.near = __shfl_sync(ALL_LANES, ray.near, from);
      ray.end = __shfl_sync(ALL_LANES, ray.end, from);
      place = __shfl_sync(ALL_LANES, place, from);
      taken = __shfl_sync(ALL_LANES, taken, from);
      red = __shfl_sync(ALL_LANES, red, from);
      green = __shfl_sync(ALL_LANES, green, from);
      blue = __shfl_sync(ALL_LANES, blue, from);
      through = __shfl_sync(ALL_LANES, through, from);
      k = __shfl_sync(ALL_LANES, k, from);
      k = living ? occupied_ahead(scene, frame, ray, k, ahead) : -1;
    }
    const float t = ray.near + static_cast<float>(k) * step;
    // Lanes without a sample all read the same cells, which costs little.
    const float x = k < 0 ? 0.5f : (clamped(fmaf(t, ray.dx, frame.pose[3]), -bound, bound) + bound) * unit;
    const float y = k < 0 ? 0.5f : (clamped(fmaf(t, ray.dy, frame.pose[7]), -bound, bound) + bound) * unit;
    const float z = k < 0 ? 0.5f : (clamped(fmaf(t, ray.dz, frame.pose[11]), -bound, bound) + bound) * unit;
    const float4 seen = field_at(scene, frame, weights, memory, lane, ray, x, y, z);
    const float opacity = 1.0f - __expf(-step * __expf(seen.w));
    const float own_red = sigmoid(seen.x), own_green = sigmoid(seen.y), own_blue = sigmoid(seen.z);
    passes++;
    bool on = living;
    int last = 0;
    for (int j = 0; j < samples_at_once; j++) {
      const int from = slot + j * rays_at_once;
      const float weight = __shfl_sync(ALL_LANES, opacity, from) * through;
      const float r = __shfl_sync(ALL_LANES, own_red, from), g = __shfl_sync(ALL_LANES, own_green, from);
      const float b = __shfl_sync(ALL_LANES, own_blue, from);
      last = __shfl_sync(ALL_LANES, k, from);
      on = on && last >= 0;
      if (on) {
        red = fmaf(weight, r, red);
        green = fmaf(weight, g, green);
        blue = fmaf(weight, b, blue);
        through -= weight;
        taken++;
        if (ahead == 0) samples++;
        on = through >= scene.stop_transmittance && taken < static_cast<int>(scene.max_steps);
      }
    }
    // A ray goes on if its last sample did not end it and another follows.
    k = on ? occupied_ahead(scene, frame, ray, last + 1, ahead) : -1;
    const int next = __shfl_sync(ALL_LANES, k, slot);
    on = on && next >= 0;
    if (living && !on && ahead == 0) {
      store_pixel(frame, place, red, green, blue, through);
      add_after_writes(frame.done + place / 32u, 1u);  // whoever sees the count sees the pixel too
    }
    living = on;
  }
#pragma unroll
  for (int other = 16; other > 0; other >>= 1) samples += __shfl_xor_sync(ALL_LANES, samples, other);
  if (lane == 0 && passes > 0u) {
    atomicAdd(launch.counts, samples);
    atomicAdd(launch.counts + 1, 32u * passes);
  }
}

// The first frame of a work, from `start` on, that has rays left to take; work.frames if there is none.
DEVICE u32 frame_with_rays(const Launch& launch, const Work& work, u32 start, int lane) {
  for (u32 first = 0; first < work.frames; first += 32u) {
    const u32 own = first + static_cast<u32>(lane);
    const u32 number = (start + own) % work.frames;
    const u32 at = work.first_frame + number;
    const bool left = own < work.frames && *static_cast<volatile u32*>(launch.taken_chunks + at) <
                                               launch.frames[at].chunks;
    const u32 lanes = __ballot_sync(ALL_LANES, left);
    if (lanes != 0u) return __shfl_sync(ALL_LANES, number, __ffs(static_cast<int>(lanes)) - 1);
  }
  return work.frames;
}

// ------------------------------------------------------------------------------------------ torso
// Where a pixel lies for the torso, in [-1, 1] between the centres of the outermost pixels of the full image.
// Rounded step by step as the twin does: pixels on the torso's edge would else change sides.
DEVICE float torso_coordinate(const Frame& frame, u32 pixel) {
  const float centre = __fmul_rn(static_cast<float>(pixel) + 0.5f, frame.pixel_px);
  return __fadd_rn(__fmul_rn(__fdiv_rn(__fadd_rn(centre, -0.5f), __fadd_rn(frame.image_size_px, -1.0f)), 2.0f),
                   -1.0f);
}

// Whether the bilinear look-up at (row, column) in [-1, 1] is above zero.
DEVICE bool torso_here(const Scene& scene, float row, float column) {
  const int side = static_cast<int>(scene.occupancy_side);
  const float y = (row + 1.0f) * 0.5f * static_cast<float>(side - 1);
  const float x = (column + 1.0f) * 0.5f * static_cast<float>(side - 1);
  const float y0 = floorf(y), x0 = floorf(x);
  float total = 0.0f;
#pragma unroll
  for (int a = 0; a < 2; a++)
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const int i = static_cast<int>(y0) + a, j = static_cast<int>(x0) + b;
      const float along_y = a == 0 ? 1.0f - (y - y0) : y - y0, along_x = b == 0 ? 1.0f - (x - x0) : x - x0;
      if (i >= 0 && i < side && j >= 0 && j < side) total += __ldg(scene.occupancy + i * side + j) * along_y * along_x;
    }
  return total > 0.0f;
}

// 48 halves: both coordinates, then sine and cosine of each octave, and zeros.
DEVICE void store_frequencies(u32* pairs, float row, float column) {
  float row_sine, row_cosine, column_sine, column_cosine;
  constexpr float per_radian = 0.31830988618379067f;  // sincospif, unlike sincosf, has no path for huge angles
  sincospif(row * per_radian, &row_sine, &row_cosine);
  sincospif(column * per_radian, &column_sine, &column_cosine);
  pairs[0] = half_pair(row, column);
#pragma unroll
  for (int octave = 0; octave < TORSO_OCTAVES; octave++) {
    pairs[1 + 2 * octave] = half_pair(row_sine, column_sine);
    pairs[2 + 2 * octave] = half_pair(row_cosine, column_cosine);
    // Twice the angle. Errors double each time: 1e-7 becomes 3e-5, less than a half rounds off.
    const float row_twice = 2.0f * row_sine * row_cosine, column_twice = 2.0f * column_sine * column_cosine;
    row_cosine = fmaf(-2.0f * row_sine, row_sine, 1.0f);
    column_cosine = fmaf(-2.0f * column_sine, column_sine, 1.0f);
    row_sine = row_twice;
    column_sine = column_twice;
  }
#pragma unroll
  for (int pair = 1 + 2 * TORSO_OCTAVES; pair < 8 * FREQUENCY_TILES; pair++) pairs[pair] = 0u;
}

// Alpha, red, green and blue, all before their sigmoid, of each lane's point.
DEVICE float4 torso_at(const Scene& scene, const Frame& frame, WarpMemory& memory, int lane, float row,
                       float column) {
  Weights<false> weights = {scene.torso_weights};
  SampleRow& own = memory.rows[lane];
  row *= scene.shrink;
  column *= scene.shrink;
  store_frequencies(reinterpret_cast<u32*>(own.position), row, column);
  __syncwarp();
  Fragment inputs[ROW_TILES][FREQUENCY_TILES + FEATURE_TILES];
#pragma unroll
  for (int k = 0; k < FREQUENCY_TILES; k++) load_rows(memory, 8 * k, lane, inputs[0][k], inputs[1][k]);
  {
    Fragment hidden[ROW_TILES][DEFORM_TILES];
    Sums moved[ROW_TILES];
    hidden_layer<FREQUENCY_TILES, DEFORM_TILES, Sums>(inputs, weights, frame.deform_bias, lane, hidden);
    weights = weights.after(hidden_uint4s(FREQUENCY_TILES, DEFORM_TILES));
    const Weights<false> last = weights.after(hidden_uint4s(DEFORM_TILES, DEFORM_TILES));
    last_two_layers<DEFORM_TILES, DEFORM_TILES, Sums>(hidden, weights, last, lane, moved);
    weights = last.after(last_uint4s(DEFORM_TILES));
    store_outputs(memory, moved, lane);
  }
  __syncwarp();
  const float x = clamped(row + own.out.x, -1.0f, 1.0f) * 0.5f + 0.5f;
  const float y = clamped(column + own.out.y, -1.0f, 1.0f) * 0.5f + 0.5f;
  encode(scene.torso, x, y, 0.0f, own.position);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < FEATURE_TILES; k++)
    load_rows(memory, 8 * k, lane, inputs[0][FREQUENCY_TILES + k], inputs[1][FREQUENCY_TILES + k]);
  Fragment hidden[ROW_TILES][CANONICAL_TILES];
  Sums out[ROW_TILES];
  hidden_layer<FREQUENCY_TILES + FEATURE_TILES, CANONICAL_TILES, HalfSums>(inputs, weights, frame.canonical_bias,
                                                                           lane, hidden);
  weights = weights.after(hidden_uint4s(FREQUENCY_TILES + FEATURE_TILES, CANONICAL_TILES));
  const Weights<false> last = weights.after(hidden_uint4s(CANONICAL_TILES, CANONICAL_TILES));
  last_two_layers<CANONICAL_TILES, CANONICAL_TILES, HalfSums>(hidden, weights, last, lane, out);
  store_outputs(memory, out, lane);
  __syncwarp();
  return own.out;
}

// Lays the torso behind the head at each lane's place, where it may be and can be seen.
DEVICE void draw_torso(const Scene& scene, const Frame& frame, WarpMemory& memory, const Pixel& pixel, u32 place,
                       int lane) {
  const float row = torso_coordinate(frame, pixel.row), column = torso_coordinate(frame, pixel.column);
  const bool here = pixel.inside && from_16_bits(__ldcg(frame.pixels + place)).w > 1.0f / 255.0f &&
                    torso_here(scene, row, column);
  if (!__any_sync(ALL_LANES, here)) return;
  const float4 torso = torso_at(scene, frame, memory, lane, row, column);
  if (here) {
    const float4 head = from_16_bits(__ldcg(frame.pixels + place));
    const float weight = sigmoid(torso.x) * head.w;
    frame.pixels[place] =
        uint2{to_16_bits(fmaf(weight, sigmoid(torso.y), head.x), fmaf(weight, sigmoid(torso.z), head.y)),
              to_16_bits(fmaf(weight, sigmoid(torso.w), head.z), head.w - weight)};
  }
  __syncwarp();
}

// ------------------------------------------------------------------------------------------ picture
DEVICE int to_byte(float value) { return static_cast<int>(clamped(fmaf(value, 255.0f, 0.5f), 0.0f, 255.0f)); }

// Lays a value over the plate's by what its place among `side` x `side` of a block weighs between the corners.
template <u32 side>
DEVICE u8 over_plate(const Frame& frame, u64 at, int value, u32 corners, u32 column, u32 row) {
  if (frame.plate == nullptr) return static_cast<u8>(value);
  constexpr u32 steps = 2u * side, full = steps * steps;
  const u32 right = 2u * (column % side) + 1u, left = steps - right;
  const u32 lower = 2u * (row % side) + 1u, upper = steps - lower;
  const u32 weight = upper * ((corners & 1u ? left : 0u) + (corners & 2u ? right : 0u)) +
                     lower * ((corners & 4u ? left : 0u) + (corners & 8u ? right : 0u));
  const u32 behind = __ldg(frame.plate + at);
  return static_cast<u8>((static_cast<u32>(value) * weight + behind * (full - weight) + full / 2u) / full);
}

// Writes each lane's pixel as RGB, or as I420 (BT.601, limited range; chroma of each two by two pixels' mean).
DEVICE void write_picture(const Frame& frame, WarpMemory& memory, const Pixel& pixel, u32 place, int lane) {
  const u32 x = pixel.column - frame.x0, y = pixel.row - frame.y0;
  if (pixel.inside) {
    const float4 front = from_16_bits(__ldcg(frame.pixels + place));
    const float4 behind =
        from_16_bits(__ldg(frame.background + static_cast<u64>(pixel.row) * frame.size_px + pixel.column));
    const int r = to_byte(fmaf(front.w, behind.x, front.x)), g = to_byte(fmaf(front.w, behind.y, front.y));
    const int b = to_byte(fmaf(front.w, behind.z, front.z));
    const u64 at = static_cast<u64>(y) * frame.width + x;
    if (frame.i420 == 0u) {
      frame.out[3 * at] = static_cast<u8>(r);
      frame.out[3 * at + 1] = static_cast<u8>(g);
      frame.out[3 * at + 2] = static_cast<u8>(b);
    } else {
      // 65.481, 128.553, 24.966 of 255 in 16 fractional bits, with a half for rounding
      const int luma = (16829 * r + 33039 * g + 6416 * b + 1081344) >> 16;
      frame.out[at] = over_plate<BLOCK_SIDE>(frame, at, luma, pixel.corners, x, y);
      memory.list[lane] = static_cast<u32>(r | (g << 8) | (b << 16));
    }
  }
  __syncwarp();
  constexpr u32 odd = 1u | BLOCK_SIDE;  // of the column or of the row
  if (frame.i420 == 0u || (place & odd) != 0u || !pixel.inside) return;
  int r = 0, g = 0, b = 0;
#pragma unroll
  for (u32 other = 0; other < 4; other++) {
    const u32 rgb = memory.list[static_cast<u32>(lane) + other / 2 * BLOCK_SIDE + other % 2];
    r += static_cast<int>(rgb & 0xffu);
    g += static_cast<int>((rgb >> 8) & 0xffu);
    b += static_cast<int>(rgb >> 16);
  }
  const u64 luma = static_cast<u64>(frame.width) * frame.height;
  const u64 at = luma + static_cast<u64>(y / 2) * (frame.width / 2) + x / 2;
  const int blue = (-9714 * r - 19071 * g + 28784 * b + (257 << 17)) >> 18;
  const int red = (28784 * r - 24103 * g - 4681 * b + (257 << 17)) >> 18;
  frame.out[at] = over_plate<BLOCK_SIDE / 2>(frame, at, blue, pixel.corners, x / 2, y / 2);
  frame.out[at + luma / 4] = over_plate<BLOCK_SIDE / 2>(frame, at + luma / 4, red, pixel.corners, x / 2, y / 2);
}

DEVICE const Frame& frame_of_chunk(const Launch& launch, const Work& work, u32 chunk) {
  u32 low = 0, high = work.frames;
  while (high - low > 1u) {
    const u32 middle = (low + high) / 2u;
    if (launch.frames[work.first_frame + middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return launch.frames[work.first_frame + low];
}

// Finishes a chunk of a work once all of its rays are drawn, and all of its frame's plate is there.
DEVICE void finish_chunk(const Launch& launch, const Work& work, const Scene& scene, WarpMemory& memory, int lane,
                         u32 number) {
  const Frame& frame = frame_of_chunk(launch, work, number);
  const u32 own = number - frame.first_chunk, place = own * 32u + static_cast<u32>(lane);
  const Pixel pixel = pixel_of(frame, place);
  const u32 pixels = static_cast<u32>(__popc(__ballot_sync(ALL_LANES, pixel.inside)));
  if (lane == 0) {
    wait_for_count(frame.done + own, pixels);
    if (frame.plate != nullptr) wait_for_count(frame.done + frame.chunks, frame.chunks);
  }
  __syncwarp();
  if (scene.occupancy_side != 0u) draw_torso(scene, frame, memory, pixel, place, lane);
  write_picture(frame, memory, pixel, place, lane);
  __syncwarp();
}

// ------------------------------------------------------------------------------------------ the whole
constexpr u32 SCENE_UINT4S = (sizeof(Scene) + 15) / 16;

// What a launch must give each block: threads, and bytes of shared memory. Read by the loader.
extern "C" {
__constant__ u32 raymarch_block[2] = {
    32 * WARPS,
    16 * (1 + SCENE_UINT4S + (WEIGHTS_IN_SHARED ? HEAD_UINT4S : 0)) + WARPS * static_cast<u32>(sizeof(WarpMemory))};
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) raymarch(const Launch launch) {
  extern __shared__ uint4 shared[];
  u32& chunks_left = shared[0].x;
  const int lane = static_cast<int>(threadIdx.x % 32u), warp = static_cast<int>(threadIdx.x / 32u);
  const Scene& scene = *reinterpret_cast<const Scene*>(shared + 1);
  uint4* const weights = shared + 1 + SCENE_UINT4S;
  WarpMemory& memory =
      reinterpret_cast<WarpMemory*>(weights + (WEIGHTS_IN_SHARED ? HEAD_UINT4S : 0))[warp];
  // Blocks begin with different scenes and frames; who has finished one helps with the next.
  for (u32 turn = 0; turn < launch.work_count; turn++) {
    const u32 which = (blockIdx.x + turn) % launch.work_count;
    const Work& work = launch.works[which];
    u32* const finished_chunks = launch.finished_chunks + which;
    const u32 chunks = work.chunks;
    if (threadIdx.x == 0u) chunks_left = *static_cast<volatile u32*>(finished_chunks) < chunks;
    __syncthreads();
    const bool mine = chunks_left != 0u;
    if (mine) {
      const uint4* const source = reinterpret_cast<const uint4*>(work.scene);
      for (u32 i = threadIdx.x; i < SCENE_UINT4S; i += blockDim.x) shared[1 + i] = __ldg(source + i);
      if (WEIGHTS_IN_SHARED) {
        const uint4* const packed = work.scene->head_weights;
        for (u32 i = threadIdx.x; i < HEAD_UINT4S; i += blockDim.x) weights[i] = __ldg(packed + i);
      }
    }
    __syncthreads();
    if (!mine) continue;
    const Weights<WEIGHTS_IN_SHARED> packed = {WEIGHTS_IN_SHARED ? weights : scene.head_weights};
    u32 number = blockIdx.x / launch.work_count % work.frames;
    for (;;) {
      number = frame_with_rays(launch, work, number, lane);
      if (number == work.frames) break;
      const u32 at = work.first_frame + number;
      draw_rays(launch, scene, launch.frames[at], launch.taken_chunks + at, packed, memory, lane);
    }
    for (;;) {
      if (lane == 0) number = atomicAdd(finished_chunks, 1u);
      number = __shfl_sync(ALL_LANES, number, 0);
      if (number >= chunks) break;
      finish_chunk(launch, work, scene, memory, lane, number);
    }
    __syncthreads();
  }
}
