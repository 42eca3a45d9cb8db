"""One file per training task, and the loop they share."""
