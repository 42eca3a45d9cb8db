"""Engines that speak and recordings that were spoken: sound with the times of its phones."""
