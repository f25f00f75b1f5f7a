"""Keyed shuffles: an order is a function of its key, not of what was drawn before.

A resumed run asks for the same key and gets the same order. NumPy promises that the raw output of
a bit generator and of `SeedSequence` never changes between versions (it makes no such promise for
`Generator.permutation`), so an order outlives an upgrade.
"""

import hashlib

import numpy as np


def keyed_order(size: int, *, key: tuple[int | str, ...]) -> np.ndarray:
    """A permutation of 0 .. size-1, (size,) int64: the ranks of `size` keyed random numbers."""
    words = [_word(part) for part in key]
    draws = np.random.Philox(np.random.SeedSequence(words)).random_raw(size)
    return np.argsort(draws, kind="stable")


def _word(part: int | str) -> int:
    """A number as it is, a name as 64 bits of its SHA-256."""
    if isinstance(part, int):
        return part
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
