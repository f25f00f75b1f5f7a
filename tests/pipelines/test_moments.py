"""Mean and deviation of a corpus: exact sums, whoever adds them up."""

from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest

from pipelines.moments import Moments


def energies(number: int, *, size: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.normal(-3.6, 1.25, size=(size, 3)).astype(np.float32)


ARRAYS = [energies(number, size=5 + 7 * number) for number in range(9)]


def test_mean_and_deviation_are_those_of_all_values():
    everything = np.concatenate(ARRAYS).astype(np.float64)
    mean, deviation = reduce(add, map(Moments.of, ARRAYS)).standard()
    assert mean == pytest.approx(everything.mean(), abs=2e-5)
    assert deviation == pytest.approx(everything.std(), abs=2e-5)


def test_order_and_parts_do_not_change_a_bit():
    parts = [Moments.of(array) for array in ARRAYS]
    whole = reduce(add, parts)
    assert reduce(add, parts[::-1]) == whole
    assert sum(parts[:2], start=Moments()) + sum(parts[2:], start=Moments()) == whole
    assert Moments.of(np.concatenate(ARRAYS)) == whole


def test_sums_are_those_of_fractions():
    moments = reduce(add, map(Moments.of, ARRAYS))
    steps = [Fraction(round(float(x) * 4096), 4096) for array in ARRAYS for x in array.ravel()]
    mean = sum(steps) / len(steps)
    spread = sum((x - mean) ** 2 for x in steps) / len(steps)
    assert moments.standard() == (float(mean), pytest.approx(float(spread) ** 0.5, rel=1e-15))


def test_equal_values_have_no_deviation():
    assert Moments.of(np.full((4, 2), -11.5, np.float32)).standard() == (-11.5, 0.0)


def test_the_largest_energies_do_not_overflow():
    loud = Moments.of(np.full((2**11, 2**11), 88.0, np.float32))  # log of the largest float
    assert loud.standard() == (88.0, 0.0)
