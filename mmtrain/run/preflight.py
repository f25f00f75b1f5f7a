"""What is checked before any process starts: pure functions of facts; a refusal has its remedy."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import MMTrainError


class PreflightError(MMTrainError):
    """The run cannot start on this machine or cluster; nothing was started."""


def check_resources(
    available: Mapping[str, float], *, num_workers: int, data_cpus: float, use_gpu: bool
) -> None:
    """Workers and their data tasks must fit at once, or the run would wait for ever.

    Args:
        available: the cluster's resources, as Ray names them ("CPU", "GPU").
        num_workers: training processes, one logical CPU each.
        data_cpus: logical CPUs for each worker's data tasks.
        use_gpu: whether each worker takes a GPU.

    Raises:
        PreflightError: they do not fit; gives the numbers.
    """
    needed = num_workers * (1 + data_cpus)
    has = available.get("CPU", 0)
    if needed > has:
        raise PreflightError(
            f"{num_workers} workers with {data_cpus:g} CPUs of data each need {needed:g} logical "
            f"CPUs, the cluster has {has:g}; use --set num_workers=N, --set stream.num_cpus=X, "
            "or add machines"
        )
    if use_gpu and num_workers > available.get("GPU", 0):
        raise PreflightError(
            f"{num_workers} workers need a GPU each, the cluster has "
            f"{available.get('GPU', 0):g}; use --set use_gpu=false or fewer workers"
        )


def check_disk(folder: Path, *, needed_bytes: int) -> None:
    """Room for what the run keeps.

    Raises:
        PreflightError: less is free than checkpoints and the bundle will take.
    """
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise PreflightError(
            f"{folder}: {free / 1e9:.1f} GB free, the run's checkpoints and bundle need "
            f"{needed_bytes / 1e9:.1f} GB; free some, or choose another --out"
        )


def checkpoint_bytes(num_parameters: int, *, keep: int) -> int:
    """Disk that a run needs: weights and two moments in fp32 for each kept checkpoint and one
    being written, and the bundle's weights.
    """  # fmt: skip
    return num_parameters * 4 * (3 * (keep + 1) + 1)
