"""Patch kernels and position tables from one patch grid to another: pictures, sounds and videos.

Both are held with an axis of time, T = 1 for what has none: a kernel (D, C, T, Y, X), positions
(T, Y, X, D). What fits already is handed back as it is, so that a model starts from its own
weights to the last bit.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Inflation = Literal["central_frame", "average"]


def fit_kernel(
    kernel_DCTYX: Tensor, *, shape: Sequence[int], inflation: Inflation = "central_frame"
) -> Tensor:
    """A patch kernel for patches of another number of channels, frames, rows and columns.

    Channels: many to one are summed (a grey picture counts as one whose channels are equal), one
    to many shared out. Frames: `flatten_kernel`, then `inflate_kernel`. Rows and columns:
    `resize_kernel`.

    Args:
        kernel_DCTYX: the kernel.
        shape: C, T, Y and X of the result.
        inflation: how frames are made from one.

    Raises:
        ValueError: several channels to another number of several.
    """
    channels, frames, rows, columns = shape
    if kernel_DCTYX.shape[1] != channels:
        if 1 not in (kernel_DCTYX.shape[1], channels):
            raise ValueError(f"{kernel_DCTYX.shape[1]} channels cannot become {channels}")
        kernel_DCTYX = kernel_DCTYX.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1, -1)
        kernel_DCTYX = kernel_DCTYX / channels
    if kernel_DCTYX.shape[2] != frames:
        kernel_DCTYX = inflate_kernel(flatten_kernel(kernel_DCTYX), frames, how=inflation)
    if tuple(kernel_DCTYX.shape[3:]) != (rows, columns):
        kernel_DCTYX = resize_kernel(kernel_DCTYX, (rows, columns))
    return kernel_DCTYX


def flatten_kernel(kernel_DCTYX: Tensor) -> Tensor:
    """Summed over time: the response to a clip that stands still."""
    return kernel_DCTYX.sum(dim=2, keepdim=True)


def inflate_kernel(kernel_DC1YX: Tensor, frames: int, *, how: Inflation) -> Tensor:
    """A picture's kernel as a clip's of `frames` frames.

    central_frame    K[t] = k where t = frames // 2, else 0
    average          K[t] = k / frames            ViViT, arXiv:2103.15691, Eq. 8 and 9
    """
    if how == "average":
        return kernel_DC1YX.expand(-1, -1, frames, -1, -1) / frames
    before = frames // 2
    return functional.pad(kernel_DC1YX, (0, 0, 0, 0, before, frames - 1 - before))


def resize_kernel(kernel_DCTYX: Tensor, size: tuple[int, int]) -> Tensor:
    """The kernel for patches of another size whose response to a resized patch is the same.

        k' = pinv(B^T) k, with B x the bilinear resize of a patch x
                                                        FlexiViT, arXiv:2212.08013, Eq. 3
    Exact to larger patches, least squares to smaller ones.
    """
    rows, columns = kernel_DCTYX.shape[3:]
    eye_NYX = torch.eye(rows * columns).unflatten(1, (rows, columns))
    resized_NYX = _resize(eye_NYX.unsqueeze(1), size).squeeze(1)
    solve_MN = torch.linalg.pinv(resized_NYX.flatten(1)).to(kernel_DCTYX)
    flat_DCTM = kernel_DCTYX.flatten(3) @ solve_MN.t()
    return flat_DCTM.unflatten(3, size)


def fit_positions(positions_TYXD: Tensor, *, shape: Sequence[int]) -> Tensor:
    """Positions of another grid: mean over frames and tiled where their number differs, bilinear
    over rows and columns, outermost on outermost, as the code of ViT and PolyViT zooms them.

    Args:
        positions_TYXD: the positions.
        shape: T, Y and X of the result.
    """
    frames, rows, columns = shape
    if positions_TYXD.shape[0] != frames:
        positions_TYXD = positions_TYXD.mean(dim=0, keepdim=True)
    if tuple(positions_TYXD.shape[1:3]) != (rows, columns):
        grid_TDYX = positions_TYXD.permute(0, 3, 1, 2)
        resized_TDYX = functional.interpolate(
            grid_TDYX, size=(rows, columns), mode="bilinear", align_corners=True
        )
        positions_TYXD = resized_TDYX.permute(0, 2, 3, 1)
    return positions_TYXD.expand(frames, -1, -1, -1)


def _resize(values_NCYX: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values_NCYX, size=size, mode="bilinear", align_corners=False)
