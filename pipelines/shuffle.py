"""Keyed shuffles: an order is a function of its key, not of what was drawn before.

A resumed run asks for the same key and gets the same order. NumPy promises that the raw output of
a bit generator and of `SeedSequence` never changes between versions (it makes no such promise for
`Generator`), so an order outlives an upgrade; what `keyed_generator` gives may change with one.
"""

import hashlib

import numpy as np


def keyed_order(size: int, *, key: tuple[int | str, ...]) -> np.ndarray:
    """A permutation of 0 .. size-1, (size,) int64: the ranks of `size` keyed random numbers."""
    return np.argsort(_keyed_bits(key).random_raw(size), kind="stable")


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Random numbers of a key."""
    return np.random.Generator(_keyed_bits(key))


def _keyed_bits(key: tuple[int | str, ...]) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([_word(part) for part in key]))


def _word(part: int | str) -> int:
    """A number as it is, a name as 64 bits of its SHA-256."""
    if isinstance(part, int):
        return part
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
