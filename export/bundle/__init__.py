"""Speaker bundles from this project's own checkpoints."""
