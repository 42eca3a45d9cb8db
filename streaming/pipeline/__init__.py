"""PCM in, I420 frames of the speaker out: threads and queues, no event loop."""
