"""Where all random numbers of a training come from: one seed for each draw."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are drawn for; each purpose has its own streams."""

    WEIGHTS = 0
    ORDER = 1
    STEP = 2


def draw_seed(seed: int, purpose: Purpose, number: int) -> int:
    """Return a generator's seed (64 bits) for one draw; `seed` and `number` are below 2**32.

    All three reach its low 32 bits: torch's CPU generator takes no others, CUDA's takes all 64.
    """
    words = np.array((seed, purpose, number), dtype=np.uint32)  # always three: (5,) equals (5, 0)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
