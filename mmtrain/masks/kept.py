"""What subtasks keep while masks are learned: units by group, and how far subtasks agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmtrain.masks.banks import MaskBank

WHOLE = "all"  # row of all subtasks together


@dataclass(frozen=True, slots=True)
class KeptPoint:
    """Units that are kept at one moment.

    Args:
        groups: units there are, by group.
        kept: units kept of each group, in that order: by basis subtask, and last, under "all", by
            all of them together.
        overlap: by basis subtask, kept units in common with each one over those of either (IoU).
    """

    groups: Mapping[str, int] = field(default_factory=dict[str, int])
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict[str, list[int]])
    overlap: Mapping[str, Sequence[float]] = field(default_factory=dict[str, list[float]])

    def shares(self) -> dict[str, float]:
        """Share of all units that each subtask keeps."""
        total = sum(self.groups.values())
        return {name: sum(counts) / total for name, counts in self.kept.items()}

    def group_shares(self) -> dict[str, list[float]]:
        """Share of each group's units that each subtask keeps."""
        sizes = self.groups.values()
        return {
            name: [count / size for count, size in zip(counts, sizes, strict=True)]
            for name, counts in self.kept.items()
        }


@torch.no_grad()
def kept_point(bank: MaskBank) -> KeptPoint:
    """What the bank's basis subtasks keep, each alone and all together."""
    unions = {name: (name,) for name in bank.subtasks} | {WHOLE: bank.subtasks}
    kept = {name: bank.masks(union).kept for name, union in unions.items()}
    alone = torch.stack([torch.cat(list(kept[name].values())) for name in bank.subtasks])
    rows = zip(bank.subtasks, overlap(alone).tolist(), strict=True)
    return KeptPoint(
        groups={group.name: group.size for group in bank.groups},
        kept={name: [int(mask.sum()) for mask in groups.values()] for name, groups in kept.items()},
        overlap=dict(rows),
    )


def overlap(kept: Tensor) -> Tensor:
    """Intersection over union of each two rows of bools (n, N), float (n, n); no row is empty."""
    rows = kept.double()
    common = rows @ rows.T
    sizes = rows.sum(dim=1)
    return common / (sizes[:, None] + sizes[None, :] - common)
