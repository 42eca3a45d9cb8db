// The raymarcher's kernel as a function of a shared library: one warp a block.
#include "raymarcher.cu"

uint4 shared[1 << 15];

static const Launch* drawn;
static void draw_lane() { raymarch(*drawn); }

extern "C" {
void draw(const Launch* launch, unsigned blocks) {
  drawn = launch;
  run_blocks(draw_lane, blocks);
}
unsigned shared_bytes() { return raymarch_block[1]; }
unsigned room_bytes() { return sizeof(shared); }
unsigned record_bytes(int record) {
  const unsigned sizes[] = {sizeof(Level), sizeof(Grid), sizeof(Scene), sizeof(Frame), sizeof(Work), sizeof(Launch)};
  return sizes[record];
}
unsigned frame_out_at() { return offsetof(Frame, out); }
}
