"""This machine's microphone in, a window out."""
