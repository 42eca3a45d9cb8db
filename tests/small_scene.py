"""What makes `benchmarks.synthetic_scene.make_scene` quick to draw: `import small_scene`."""

SMALL = {
    "hidden": 16,
    "levels": 5,
    "log2_rows": 10,
    "condition": 8,
    "grid_size": 32,
    "image_size_px": 128,
    "torso_hidden": 16,
}
