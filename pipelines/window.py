"""A window of a picture: what a move of it shows in place of the whole, with what lies in it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

ROUNDING = 1e-9  # of shares of a side: an edge that is off by it lies on the picture's


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture, in shares of its width and height; what lies beyond the edge is 0."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0
    mirrored: bool = False

    def of_planes(self, planes_PYX: np.ndarray, *, resample: Image.Resampling) -> np.ndarray:
        """The window of each plane, uint8, stretched to the size of the whole.

        A window as large as the whole is moved by whole pixels.
        """
        if self.width == self.height == 1.0:
            seen = self._moved(planes_PYX)
        else:
            seen = np.stack([self._stretched(plane, resample) for plane in planes_PYX])
        return seen[..., ::-1] if self.mirrored else seen

    def of_frames(self, pixels: np.ndarray) -> np.ndarray:
        """The same window of each frame and channel of uint8 (..., Y, X, C)."""
        planes = np.moveaxis(pixels, -1, 0)
        flat = planes.reshape(-1, *planes.shape[-2:])
        seen = self.of_planes(flat, resample=Image.Resampling.BILINEAR).reshape(planes.shape)
        return np.ascontiguousarray(np.moveaxis(seen, 0, -1))

    def _moved(self, planes: np.ndarray) -> np.ndarray:
        rows, columns = planes.shape[-2:]
        down = min(max(round(self.top * rows), -rows), rows)
        right = min(max(round(self.left * columns), -columns), columns)
        inner = (slice(max(0, down), rows + down), slice(max(0, right), columns + right))
        outer = (slice(max(0, -down), rows - down), slice(max(0, -right), columns - right))
        out = np.zeros_like(planes)
        out[..., outer[0], outer[1]] = planes[..., inner[0], inner[1]]
        return out

    def _stretched(self, plane: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        size = (plane.shape[1], plane.shape[0])
        sides = (self.left, self.top, self.left + self.width, self.top + self.height)
        picture = Image.fromarray(plane)
        if min(sides) >= 0 and max(sides) <= 1 + ROUNDING:
            edges = np.multiply(np.minimum(sides, 1.0), size * 2).tolist()
            return np.asarray(picture.resize(size, resample, box=edges))  # 3 times as fast
        edges = np.multiply(sides, size * 2).tolist()
        extent = Image.Transform.EXTENT
        return np.asarray(picture.transform(size, extent, data=edges, resample=resample))

    def of_box(self, box: np.ndarray) -> np.ndarray | None:
        """A box (left, top, right, bottom) in shares of the window; None: its middle is outside."""
        corner = np.array([self.left, self.top] * 2)
        moved = (box - corner) / np.array([self.width, self.height] * 2)
        middle = (moved[:2] + moved[2:]) / 2
        if (middle < 0).any() or (middle > 1).any():
            return None
        if self.mirrored:
            moved = np.array([1 - moved[2], moved[1], 1 - moved[0], moved[3]])
        return np.clip(moved, 0.0, 1.0).astype(box.dtype)
