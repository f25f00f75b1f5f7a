"""Mixtures over time: the rates of tasks at every step, and the order that keeps to them.

Rates are given at some steps; between them they stay, or go over in a straight line or at a
constant factor a step. The order is not drawn: it is the one in which no task is ever a whole
mini-batch ahead of what its rates have added up to, or behind it.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipelines.errors import PlanError

SLACK = 1e-6  # mini-batches: what sums of shares may be off by; a task's turn is not lost to it

Points = Mapping[int, Mapping[str, float]]


def tempered(rates: Mapping[str, float], *, temperature: float) -> dict[str, float]:
    """r^(1/T): T = 1 leaves rates as they are, a large T makes them equal.

    Mixing in multilingual BERT and T5 (arXiv:1910.10683, Sec. 3.5.2).
    """
    return {task: rate ** (1 / temperature) for task, rate in rates.items()}


def shares(points: Points, *, tasks: Sequence[str], num_steps: int, between: str) -> np.ndarray:
    """Share of each task at each step, (tasks, steps); the shares of a step sum to 1.

    Args:
        points: positive rates of all tasks, by step; before the first step and after the last one
            the rates are that step's.
        tasks: in the order of the rows.
        num_steps: steps of the run.
        between: name in BETWEEN.

    Raises:
        PlanError: a point lies outside the run.
    """
    steps = sorted(points)
    if steps[0] < 0 or steps[-1] >= num_steps:
        raise PlanError(
            f"rates are given at steps {steps}, the run has steps 0 to {num_steps - 1}; "
            "mend schedule.rates_at or num_steps"
        )
    rates = np.array([[points[step][task] for step in steps] for task in tasks])
    whole = np.stack([BETWEEN[between](num_steps, np.array(steps), row) for row in rates])
    whole /= whole.sum(axis=0)
    return whole


def stepwise(num_steps: int, steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The rate of the last step that has one."""
    latest = np.searchsorted(steps, np.arange(num_steps), side="right") - 1
    return rates[np.maximum(latest, 0)]


def linear(num_steps: int, steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """A straight line from one given rate to the next."""
    return np.interp(np.arange(num_steps), steps, rates)


def exponential(num_steps: int, steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """From one given rate to the next by the same factor at every step."""
    return np.exp(np.interp(np.arange(num_steps), steps, np.log(rates)))


BETWEEN: dict[str, Callable[[int, np.ndarray, np.ndarray], np.ndarray]] = {
    function.__name__: function for function in (stepwise, linear, exponential)
}


def even_order(shares: np.ndarray) -> np.ndarray:
    """The row chosen at each step, (steps,) int16, such that counts keep to the shares' sums.

    With S_i(n) the sum of row i's shares up to step n, x_i(n) how often it was chosen, k rows:

        |x_i(n) - S_i(n)| <= 1 - 1 / (2 k - 2)    for every row i and step n

    The j-th turn of a row may come once S_i >= j - 1 + c, and must by the step at which
    S_i >= j - c, with c = 1 / (2 k - 2); of the turns that may come, the one that must first is
    taken. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980), 323-330.

    Args:
        shares: (rows, steps); those of a step sum to 1.
    """
    num_rows, num_steps = shares.shape
    if num_rows == 1:
        return np.zeros(num_steps, np.int16)
    opens, closes, rows = _turns(shares, margin=1 / (2 * num_rows - 2))
    order = np.empty(num_steps, np.int16)
    waiting: list[tuple[int, int]] = []
    following, count = 0, len(opens)
    for step in range(num_steps):
        while following < count and opens[following] <= step:
            heapq.heappush(waiting, (closes[following], rows[following]))
            following += 1
        order[step] = heapq.heappop(waiting)[1]
    return order


def _turns(shares: np.ndarray, *, margin: float) -> tuple[list[int], list[int], list[int]]:
    """All turns by the step from which they may come: that step, by when they must, their row."""
    opens, closes, rows = [], [], []
    for row, share in enumerate(shares):
        total = np.cumsum(share)
        turns = np.arange(1, int(np.ceil(total[-1])) + 1)
        first = np.searchsorted(total, turns - 1 + margin - SLACK)
        first = first[first < len(share)]
        opens.append(first)
        closes.append(np.searchsorted(total, turns[: len(first)] - margin))
        rows.append(np.full(len(first), row))
    opened = np.concatenate(opens)
    by_step = np.argsort(opened, kind="stable")
    return (
        opened[by_step].tolist(),
        np.concatenate(closes)[by_step].tolist(),
        np.concatenate(rows)[by_step].tolist(),
    )
