"""What is measured: each module prints its table last."""
