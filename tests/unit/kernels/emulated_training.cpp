// The training kernels as plain C++, started by name as the driver does it.
#include "training.cu"

template <class Arguments, void (*KERNEL)(const Arguments)>
void run(const void* arguments, unsigned blocks) {
  static Arguments own;
  std::memcpy(static_cast<void*>(&own), arguments, sizeof own);
  run_blocks([] { KERNEL(own); }, blocks);
}

struct Entry {
  const char* name;
  void (*run)(const void*, unsigned);
  size_t bytes;
};
#define ENTRY(NAME, ARGUMENTS) {#NAME, run<ARGUMENTS, NAME>, sizeof(ARGUMENTS)}
#define GRID_ENTRIES(D)                                                                     \
  ENTRY(encode_##D##d, GridArguments), ENTRY(encode_table_gradient_##D##d, GridArguments), \
      ENTRY(encode_point_gradient_##D##d, GridArguments)
const Entry entries[] = {
    GRID_ENTRIES(2),
    GRID_ENTRIES(3),
    ENTRY(march_rays, MarchArguments),
    ENTRY(pack_samples, PackArguments),
    ENTRY(composite_rays, CompositeArguments),
    ENTRY(composite_gradient, CompositeGradientArguments),
};

// Runs a kernel in blocks of 32 threads; false if there is none of that name and size of record.
extern "C" bool launch(const char* name, const void* arguments, size_t bytes, unsigned blocks) {
  for (const Entry& entry : entries)
    if (std::strcmp(entry.name, name) == 0 && entry.bytes == bytes) {
      entry.run(arguments, blocks);
      return true;
    }
  return false;
}
