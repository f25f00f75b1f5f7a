"""How tasks' gradients agree on what they share: cosines of samples, taken now and then.

Every so many steps of a task its gradient is looked up at a few coordinates of the body, the same
ones each time, while it passes to the engine; at all other steps nothing is there to cost time.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmtrain.engines.ranks import sum_over_ranks
from mmtrain.step.gradients import is_shared

SAMPLE = 4096  # coordinates: a cosine of two of them is off by about 1 / 64

Cosines = list[list[float | None]]  # (tasks, tasks); None: not sampled yet


class GradientMonitor:
    """Holds each task's latest sample.

    Args:
        model: before an engine takes it over, since a part of a parameter has no shape.
        tasks: in the order of the cosines.
        every: steps of a task between its samples; 0: none are taken.
        seed: of the coordinates.
    """

    def __init__(self, model: nn.Module, *, tasks: Sequence[str], every: int, seed: int) -> None:
        self.tasks, self._every = tuple(tasks), every
        self._latest: dict[str, Tensor] = {}
        self._taking: dict[str, Tensor] = {}
        self._fresh = False
        self._places = sampled_places(model, seed=seed) if every else []

    @contextmanager
    def watching(self, task: str, *, ordinal: int) -> Generator[None]:
        """Samples the gradients that pass while it is open, if the task's n-th step is due."""
        if not self._places or ordinal % self._every:
            yield
            return
        device = self._places[0][0].device
        sample = self._taking.setdefault(task, torch.zeros(SAMPLE, device=device))
        hooks = [
            parameter.register_hook(_sampler(sample, places, start=start))
            for parameter, places, start in self._places
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end_step(self) -> None:
        """Adds up the ranks' parts of what was sampled. All ranks call this together."""
        for task in sorted(self._taking):
            self._latest[task] = sum_over_ranks(self._taking[task])
            self._fresh = True
        self._taking = {}

    def point(self) -> Cosines | None:
        """Cosines between the tasks' latest samples; None if there was none since the last."""
        if not self._fresh:
            return None
        self._fresh = False
        return cosines([self._latest.get(task) for task in self.tasks])


def cosines(samples: Sequence[Tensor | None]) -> Cosines:
    """Cosine of the angle between each two samples; None where one is missing or zero."""

    def cosine(left: Tensor | None, right: Tensor | None) -> float | None:
        if left is None or right is None:
            return None
        norm = float(left.norm() * right.norm())
        return float(left @ right) / norm if norm > 0 else None

    return [[cosine(left, right) for right in samples] for left in samples]


def sampled_places(model: nn.Module, *, seed: int) -> list[tuple[nn.Parameter, Tensor, int]]:
    """Parameters of the body with the coordinates sampled of each, and where in the sample."""
    owner_of: Callable[[str], str] = model.parameter_owner  # type: ignore[assignment]
    shared = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and is_shared(owner_of(name))
    ]
    sizes = [parameter.numel() for parameter in shared]
    generator = torch.Generator().manual_seed(seed)
    if not sizes:
        return []
    drawn = torch.randint(sum(sizes), (SAMPLE,), generator=generator).sort().values
    places, begin, start = [], 0, 0
    for parameter, size in zip(shared, sizes, strict=True):
        mine = drawn[(drawn >= begin) & (drawn < begin + size)] - begin
        if len(mine):
            places.append((parameter, mine.to(parameter.device), start))
        begin, start = begin + size, start + len(mine)
    return places


def _sampler(sample: Tensor, places: Tensor, *, start: int) -> Callable[[Tensor], None]:
    def look(gradient: Tensor) -> None:
        sample[start : start + len(places)] += gradient.detach().flatten()[places].float()

    return look
