"""A recording in, a video or its landmarks out."""
