"""Augmentation: random changes of training examples, drawn anew each time one is read.

What is drawn is keyed by (seed, task, example, epoch): no state, so that ranks, accumulation and
resuming change nothing. An augmentation is a class whose fields are its settings, in AUGMENTATIONS
or a user's own, `my_augmentations.py:Blur`. There are two kinds:

    a change of looks alters the values of the input and leaves the target as it is
    a move takes another window of the picture; masks and boxes move with it

Labels stay as they are: that a flipped picture still has its label is for the task to know. Pixels
are uint8 before and after.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import AugmentationError, first_problem
from pipelines.modalities.numbers import BOX
from pipelines.names import load_object
from pipelines.plan import PlannedBatch
from pipelines.shards import Example
from pipelines.shuffle import keyed_generator
from pipelines.task import Augmentation, Task
from pipelines.window import Window

Rng = np.random.Generator
WINDOW_TRIES = 10
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    inputs: ClassVar[tuple[str, ...]] = ("image", "video")  # array kinds that it is for


class Looks(_Settings):
    """A change of the input's values."""

    def changed(self, array: np.ndarray, *, rng: Rng) -> np.ndarray:
        """The array after the change; the array given stays."""
        raise NotImplementedError


class Move(_Settings):
    """Another window of the picture in place of the whole."""

    def window(self, *, height: int, width: int, rng: Rng) -> Window:
        """A window of a picture of so many pixels."""
        raise NotImplementedError


class RandomCropFlip(Move):
    """A window of random area and shape, perhaps mirrored; as Inception was trained.

        area ~ U(min_area, 1),   log(width / height) ~ U(-log aspect, log aspect)

    Szegedy et al., arXiv:1409.4842, Sec. 6.
    """

    min_area: float = Field(default=0.08, gt=0, le=1, description="Least share of the area.")
    aspect: float = Field(default=4 / 3, ge=1, description="Greatest width over height.")
    flip_prob: float = Field(default=0.5, ge=0, le=1, description="Mirrored left to right.")

    def window(self, *, height: int, width: int, rng: Rng) -> Window:
        """The whole picture where no window of the drawn shapes lies inside it."""
        mirrored = bool(rng.random() < self.flip_prob)
        for _ in range(WINDOW_TRIES):
            area = rng.uniform(self.min_area, 1.0) * height * width
            ratio = math.exp(rng.uniform(-1.0, 1.0) * math.log(self.aspect))
            wide, high = math.sqrt(area * ratio) / width, math.sqrt(area / ratio) / height
            if wide <= 1 and high <= 1:
                left, top = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
                return Window(left, top, wide, high, mirrored)
        return Window(mirrored=mirrored)


class Shift(Move):
    """Moved by whole pixels up, down, left and right; what comes in is black."""

    pixels: int = Field(default=2, ge=1, description="Farthest move, each way.")

    def window(self, *, height: int, width: int, rng: Rng) -> Window:
        right, down = rng.integers(-self.pixels, self.pixels, size=2, endpoint=True)
        return Window(left=float(right) / width, top=float(down) / height)


class Zoom(Move):
    """Made larger or smaller about a random place; what comes in is black."""

    low: float = Field(default=0.9, gt=0, description="Least scale.")
    high: float = Field(default=1.33, gt=0, description="Greatest scale.")

    def window(self, *, height: int, width: int, rng: Rng) -> Window:
        side = 1.0 / rng.uniform(min(self.low, self.high), max(self.low, self.high))
        return Window(rng.random() * (1 - side), rng.random() * (1 - side), side, side)


class Flip(Move):
    """Perhaps mirrored left to right."""

    prob: float = Field(default=0.5, ge=0, le=1, description="How often.")

    def window(self, *, height: int, width: int, rng: Rng) -> Window:
        return Window(mirrored=bool(rng.random() < self.prob))


class ColorJitter(Looks):
    """Brightness, contrast and saturation times random factors, the same for a clip's frames.

    x <- f x,   x <- m + f (x - m), m the mean,   x <- g + f (x - g), g the grey of the pixel
    """

    prob: float = Field(default=0.8, ge=0, le=1, description="How often.")
    brightness: float = Field(default=0.4, ge=0, lt=1, description="Factors in 1 -+ this.")
    contrast: float = Field(default=0.4, ge=0, lt=1, description="Factors in 1 -+ this.")
    saturation: float = Field(default=0.4, ge=0, lt=1, description="Factors in 1 -+ this.")

    def changed(self, array: np.ndarray, *, rng: Rng) -> np.ndarray:
        """uint8 (..., Y, X, C)."""
        spans = (self.brightness, self.contrast, self.saturation)
        bright, contrast, saturate = 1 + rng.uniform(-1, 1, size=3) * spans
        if rng.random() >= self.prob:
            return array
        pixels = array.astype(np.float32) * np.float32(bright)
        mean = pixels.mean()
        pixels = mean + np.float32(contrast) * (pixels - mean)
        if pixels.shape[-1] == 3:
            grey = (pixels @ LUMINANCE.astype(np.float32))[..., None]
            pixels = grey + np.float32(saturate) * (pixels - grey)
        return _to_bytes(pixels)


class Gray(Looks):
    """Perhaps without colour; three channels stay."""

    prob: float = Field(default=0.1, ge=0, le=1, description="How often.")

    def changed(self, array: np.ndarray, *, rng: Rng) -> np.ndarray:
        """uint8 (..., Y, X, 3)."""
        if rng.random() >= self.prob:
            return array
        return np.broadcast_to(_to_bytes(array @ LUMINANCE)[..., None], array.shape).copy()


class TimeJitter(Looks):
    """Moved in time by whole frames: a clip's edge frame is held, a sound's gap is its mean."""

    inputs: ClassVar[tuple[str, ...]] = ("video", "audio")
    frames: int = Field(default=1, ge=1, description="Farthest move, to and fro.")

    def changed(self, array: np.ndarray, *, rng: Rng) -> np.ndarray:
        """(T, ...): uint8 frames of a clip, or float32 log-mel frames."""
        places = np.arange(len(array)) + rng.integers(-self.frames, self.frames, endpoint=True)
        moved = array[places.clip(0, len(array) - 1)]
        if array.dtype.kind == "f":
            moved[(places < 0) | (places >= len(array))] = 0.0
        return moved


class SpecAugment(Looks):
    """Bands of bins and stretches of frames set to 0, the mean; widths U{0 .. the bound}.

    Park et al., arXiv:1904.08779, Sec. 2, without time warping.
    """

    inputs: ClassVar[tuple[str, ...]] = ("audio",)
    bin_masks: int = Field(default=1, ge=0, description="Bands of mel bins.")
    max_bins: int = Field(default=48, ge=1, description="Widest band, in bins.")
    frame_masks: int = Field(default=4, ge=0, description="Stretches of time.")
    max_frames: int = Field(default=48, ge=1, description="Longest stretch, in frames.")

    def changed(self, array: np.ndarray, *, rng: Rng) -> np.ndarray:
        """float32 (frames, bins)."""
        masked = array.copy()
        bounds = [(self.bin_masks, self.max_bins, 1), (self.frame_masks, self.max_frames, 0)]
        for count, longest, axis in bounds:
            size = array.shape[axis]
            for _ in range(count):
                width = int(rng.integers(0, min(longest, size), endpoint=True))
                first = int(rng.integers(0, size - width, endpoint=True))
                np.moveaxis(masked, axis, 0)[first : first + width] = 0.0
        return masked


AUGMENTATIONS: Mapping[str, type[Looks] | type[Move]] = {
    "random_crop_flip": RandomCropFlip,
    "shift": Shift,
    "zoom": Zoom,
    "flip": Flip,
    "color_jitter": ColorJitter,
    "gray": Gray,
    "time_jitter": TimeJitter,
    "spec_augment": SpecAugment,
}


def check_augmentations(task: Task) -> None:
    """A task's augmentations exist, have right settings, and fit its inputs and targets.

    Raises:
        UnknownNameError: there is no such augmentation.
        AugmentationError: what is wrong, and what would be right.
    """
    kind = task.inputs.array_kind
    for augmentation in task.augment:
        change, name = load(augmentation), f"task {task.name}: augmentation {augmentation.name}"
        if kind not in change.inputs:
            fitting = [name for name, shipped in AUGMENTATIONS.items() if kind in shipped.inputs]
            remedy = f", or choose of {', '.join(fitting)}" if fitting else ""
            raise AugmentationError(
                f"{name} is for {' and '.join(change.inputs)}, not for {task.inputs.net}; leave it "
                f"out{remedy}"
            )
        if isinstance(change, Gray) and getattr(task.inputs, "channels", 3) == 1:
            raise AugmentationError(f"{name}: the pictures are grey already; leave it out")
        if isinstance(change, Move) and not _moves_along(task):
            raise AugmentationError(
                f"{name} moves the picture, and its targets would not move along: only masks of "
                f"the picture's size and boxes (numbers {', '.join(BOX)}) do; leave it out"
            )


def _moves_along(task: Task) -> bool:
    """Whether targets that say where something is are of a kind that a window can move."""
    if task.targets.place == "mask":
        return task.inputs.array_kind == "image"
    return task.targets.place != "unknown"


def load(augmentation: Augmentation) -> Looks | Move:
    """An augmentation with its settings.

    Raises:
        UnknownNameError: there is none of that name.
        OwnCodeError: the user's file is gone, does not run, or names something else.
        AugmentationError: a setting is unknown or out of its range.
    """
    own = type(_Settings)  # the class of the classes that are augmentations
    kind = load_object(augmentation.name, kind="augmentation", shipped=AUGMENTATIONS, of=own)
    if not issubclass(kind, Looks | Move):
        raise AugmentationError(f"augmentation {augmentation.name}: make it a Looks or a Move")
    try:
        return kind.model_validate(augmentation.settings)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise AugmentationError(
            f"augmentation {augmentation.name}: {first_problem(error)}; its settings are {known}"
        ) from None


def augment(
    examples: Sequence[Example], *, planned: PlannedBatch, task: Task, seed: int
) -> list[Example]:
    """The examples of a planned batch, changed; as they are where the plan says so.

    Args:
        examples: of `planned.rows`, in order.
        planned: which rows, and in which epoch each is read.
        task: whose augmentations.
        seed: of the run.
    """
    if planned.epochs is None or not task.augment:
        return list(examples)
    changes = [load(augmentation) for augmentation in task.augment]
    keys = zip(planned.rows.tolist(), planned.epochs.tolist(), strict=True)
    return [
        augment_one(
            example,
            changes=changes,
            place=task.targets.place,
            rng=keyed_generator(seed, task.name, "augment", row, epoch),
        )
        for example, (row, epoch) in zip(examples, keys, strict=True)
    ]


def augment_one(
    example: Example, *, changes: Sequence[Looks | Move], place: str, rng: Rng
) -> Example:
    """One example after all changes, in order; `place` is its targets' (`Feature.place`)."""
    for change in changes:
        if isinstance(change, Move):
            example = _moved(example, change=change, place=place, rng=rng)
        else:
            example = Example(change.changed(example.inputs, rng=rng), example.targets)
    return example


def _moved(example: Example, *, change: Move, place: str, rng: Rng) -> Example:
    """Input and target in one window; a box must stay in sight, else another window is drawn."""
    height, width = example.inputs.shape[-3:-1]
    for _ in range(WINDOW_TRIES):
        window, moved = change.window(height=height, width=width, rng=rng), example.targets
        if place == "mask":
            moved = window.of_planes(moved[None], resample=Image.Resampling.NEAREST)[0]
        elif place == "box":
            moved = window.of_box(moved)
        if moved is not None:
            return Example(window.of_frames(example.inputs), moved)
    return example


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
