"""How many mini-batches of a run each task gets: whole numbers from rates."""

from collections.abc import Mapping, Sequence
from math import gcd

from pipelines.errors import PlanError


def split_steps(
    total: int, *, rates: Mapping[str, float], remainder: str = "share"
) -> dict[str, int]:
    """U_j: `total` shared out by rates, exactly: floors, then one more to the largest remainders.

    Ties go to the task named first.

    Raises:
        PlanError: a task would get no step at all, or there is a remainder and `remainder` is
            "refuse".
    """
    whole = sum(rates.values())
    parts = {task: total * (rate / whole) for task, rate in rates.items()}
    steps = largest_remainders(parts, total=total)
    if remainder == "refuse" and any(abs(steps[task] - parts[task]) > 1e-6 for task in rates):
        raise PlanError(not_shared(total, unit=_whole_unit(rates), tasks=list(rates)))
    empty = [task for task, count in steps.items() if count == 0]
    if empty:
        raise PlanError(f"no mini-batch for {empty} in {total}; raise num_steps or their rates")
    return steps


def largest_remainders(parts: Mapping[str, float], *, total: int) -> dict[str, int]:
    """Whole numbers for parts that sum to `total`: floors, then one more to the largest remainders.

    Ties go to the first. Remainders that are equal as fractions may differ as floats, so they are
    compared to nine digits.
    """
    counts = {name: int(part + 1e-9) for name, part in parts.items()}
    by_remainder = sorted(parts, key=lambda name: round(counts[name] - parts[name], 9))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _whole_unit(rates: Mapping[str, float]) -> int | None:
    """The least number of steps that whole rates share without a remainder."""
    if any(rate != int(rate) for rate in rates.values()):
        return None
    whole = [int(rate) for rate in rates.values()]
    return sum(whole) // gcd(*whole)


def not_shared(total: int, *, unit: int | None, tasks: Sequence[str]) -> str:
    """Says that steps leave a remainder, and which would not: multiples of `unit`, if known."""
    near = "set schedule.remainder=share"
    if unit is not None:
        lower = total // unit * unit
        near = f"use {' or '.join(str(n) for n in (lower, lower + unit) if n)}, or {near}"
    return f"{total} steps cannot be shared out among {list(tasks)} without a remainder; {near}"
