"""Export: trained checkpoints to one verified speaker bundle."""
