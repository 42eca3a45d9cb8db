"""The live path: audio in, frames of the speaker out."""
