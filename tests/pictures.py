"""How alike two pictures are: `import pictures`."""

from __future__ import annotations

import math


def psnr_db(got, expected):
    """Returns the peak signal-to-noise ratio of arrays or tensors of values 0 to 1; at most 120."""
    return -10 * math.log10(max(1e-12, float(((got - expected) ** 2).mean())))
