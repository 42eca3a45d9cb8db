"""Checkpoints of this project's training into one speaker bundle."""
