"""The raymarcher: the CPU kernel, its torch reference twin and the scene they draw."""
