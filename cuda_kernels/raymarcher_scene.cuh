// What the raymarcher's kernel reads; cuda_raymarcher.py writes the same records.
#pragma once

#include "warp_matrix.cuh"

constexpr int MAX_LEVELS = 16;
constexpr int MAX_WIDTH = 128;
constexpr int TORSO_DEFORM_WIDTH = 64;
constexpr int TORSO_CANONICAL_WIDTH = 32;
constexpr int TORSO_OCTAVES = 10;

struct alignas(16) Level {
  float scale;   // cells per unit of [0, 1]
  u32 stride_y;  // rows
  u32 stride_z;  // rows; 0 where z does not enter the index
  u32 mask;      // what wraps an index
  u32 start;     // first cell of the level
  u32 unused[3];
};

// A row is two halves. Each stands with those at x + 1, at y + 1 and at both: one read of 16 bytes gives a cell.
struct Grid {
  const uint4* cells;
  u32 levels_with_z;  // levels below this one have eight corners, the others four
  u32 levels;
  Level level[MAX_LEVELS];
};

struct Scene {
  Grid position;
  Grid ambient;
  Grid torso;
  const uint4* head_weights;
  const uint4* torso_weights;
  const u8* distance;      // (side, side, side), chessboard distance to the nearest occupied cell
  const float* occupancy;  // (side, side) [row, column], above 0 where the torso may be
  float aabb[6];
  float box[6];  // around all that is occupied
  float bound;
  float step;
  float min_near;
  float stop_transmittance;
  float shrink;
  u32 max_steps;
  u32 side;
  u32 occupancy_side;  // 0: no torso
};

struct Frame {
  float pose[12];  // (3, 4) camera to the field's space
  float focal_px;  // of the drawn size
  float cx_px;
  float cy_px;
  float pixel_px;  // pixels of the full image to one drawn pixel
  float image_size_px;
  u32 size_px;  // side of the whole drawn picture
  u32 x0;       // the part of it that is drawn
  u32 y0;
  u32 width;
  u32 height;
  u32 first_chunk;  // of the frame, among the chunks of its work
  u32 chunks;       // at least one
  u32 block_count;
  u32 blocks_across;        // of a part that is drawn whole
  u32 i420;                 // 0: RGB
  const uint2* background;  // (size, size) red, green, blue and nothing, 16 bits each
  const u32* blocks;        // column, row (from bit 12 on) and corners (from bit 24 on); null: all, row by row
  const u8* plate;          // what lies under the blocks, I420 of the whole picture; null: nothing
  uint2* pixels;            // (chunks, 32) red, green, blue of the head and what passes through it
  u32* done;                // (chunks + 1,) pixels of a chunk that are drawn, and chunks of the plate that are
                            // copied; zero at the start
  u8* out;
  float ambient_bias[MAX_WIDTH];
  float deform_bias[TORSO_DEFORM_WIDTH];
  float canonical_bias[TORSO_CANONICAL_WIDTH];
};

// The frames of one scene in a launch.
struct Work {
  const Scene* scene;
  u32 first_frame;
  u32 frames;
  u32 chunks;
  u32 unused;
};

struct Launch {
  const Work* works;
  const Frame* frames;
  u32* taken_chunks;     // (frames,) chunks of rays that warps have taken; zero at the start
  u32* finished_chunks;  // (works,) chunks that warps have taken to finish; zero at the start
  u32* counts;           // (2,) head samples, and samples that went through the networks; zero at the start
  u32 work_count;
  u32 unused;
};
