"""Canvases: one to three handwritten digits on a picture, for four tasks of unequal size.

    digits   which digits a canvas of one to three holds
    pairs    which digit stands left and which right
    boxes    where the only digit is, in pixels
    masks    which pixels belong to the only digit, and which digit it is

Each task has canvases of its own. Scans keep the split that they have in the corpus of digits, so
that no test canvas of any task shows a scan of any training picture.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.digits import draw, load_scans, partition
from pipelines.modalities.image import to_png

SIDE = 32  # pixels, as the pictures of single digits
HALF = SIDE // 2
SMALL = (12, 16)  # side of one digit of several, in pixels, from .. to
LARGE = (12, 26)  # side of the only digit
INK = 64  # level from which a pixel belongs to a digit

NUM_EXAMPLES: Mapping[str, Mapping[str, int]] = {
    "digits": {"train": 4_000, "validation": 150, "test": 300},
    "pairs": {"train": 2_000, "validation": 150, "test": 300},
    "boxes": {"train": 500, "validation": 150, "test": 300},
    "masks": {"train": 2_000, "validation": 150, "test": 300},
}

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Pool:
    """Scans of one split, to draw from.

    Args:
        scans_NYX: levels, uint8 (N, 8, 8).
        digits: the digit of each.
        numbers: their numbers among all scans.
        rng: where all chance of a manifest comes from.
    """

    scans_NYX: np.ndarray
    digits: np.ndarray
    numbers: np.ndarray
    rng: np.random.Generator

    def take(self, count: int) -> list[int]:
        """Places of distinct scans in the pool."""
        return self.rng.choice(len(self.digits), size=count, replace=False).tolist()

    def draw(self, place: int, *, sides: tuple[int, int]) -> np.ndarray:
        """A scan in a size drawn from `sides`, last one included: uint8 (side, side)."""
        return draw(self.scans_NYX[place], side=int(self.rng.integers(sides[0], sides[1] + 1)))

    def corner(self, drawn_YX: np.ndarray, *, room: tuple[int, int]) -> tuple[int, int]:
        """Where a drawn digit stands inside a room of (rows, columns)."""
        side = len(drawn_YX)
        top, left = (int(self.rng.integers(0, size - side + 1)) for size in room)
        return top, left


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/<kind>.jsonl` with `<split>/<kind>/*.png`, a kind for each task."""
    scans_NYX, digits = load_scans()
    with whole_folder(folder) as part:
        for number, (split, members) in enumerate(sorted(partition(len(digits)).items())):
            for place, kind in enumerate(DRAWERS):
                rng = np.random.default_rng((seed, number, place))
                pool = Pool(scans_NYX[members], digits[members], members, rng)
                (part / split / kind).mkdir(parents=True)
                write_kind(kind, pool=pool, split=split, folder=part / split)


def write_kind(kind: str, *, pool: Pool, split: str, folder: Path) -> None:
    """One JSON object a canvas; paths are relative to the manifest's folder."""
    rows = []
    for place in range(NUM_EXAMPLES[kind][split]):
        image = f"{kind}/{place:05d}.png"
        canvas_YX, row = DRAWERS[kind](pool)
        (folder / image).write_bytes(to_png(canvas_YX))
        mask_YX = row.pop("mask", None)
        if isinstance(mask_YX, np.ndarray):
            row["mask"] = f"{kind}/{place:05d}_mask.png"
            (folder / str(row["mask"])).write_bytes(to_png(mask_YX))
        rows.append({"image": image, **row})
    write_lines(folder / f"{kind}.jsonl", map(json.dumps, rows))


def draw_digits(pool: Pool) -> tuple[np.ndarray, Row]:
    """One to three digits, each in a quarter of its own."""
    chosen = pool.take(int(pool.rng.integers(1, 4)))
    canvas_YX = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for place, quarter in zip(chosen, pool.rng.permutation(4).tolist(), strict=False):
        drawn_YX = pool.draw(place, sides=SMALL)
        top, left = pool.corner(drawn_YX, room=(HALF, HALF))
        paste(
            canvas_YX, drawn_YX, top=top + HALF * (quarter // 2), left=left + HALF * (quarter % 2)
        )
    held = sorted({str(pool.digits[place]) for place in chosen})
    return canvas_YX, {"digits": held, "scans": scans_of(pool, chosen)}


def draw_pair(pool: Pool) -> tuple[np.ndarray, Row]:
    """Two digits, one in each half, at any height."""
    chosen = pool.take(2)
    canvas_YX = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for half, place in enumerate(chosen):
        drawn_YX = pool.draw(place, sides=SMALL)
        top, left = pool.corner(drawn_YX, room=(SIDE, HALF))
        paste(canvas_YX, drawn_YX, top=top, left=left + HALF * half)
    left_digit, right_digit = (str(pool.digits[place]) for place in chosen)
    pair = {"left": left_digit, "right": right_digit}
    return canvas_YX, {"pair": pair, "scans": scans_of(pool, chosen)}


def draw_box(pool: Pool) -> tuple[np.ndarray, Row]:
    """A digit anywhere, and the smallest box around its ink."""
    canvas_YX, place = draw_one(pool)
    return canvas_YX, {"box": ink_box(canvas_YX), "scans": scans_of(pool, [place])}


def draw_mask(pool: Pool) -> tuple[np.ndarray, Row]:
    """A digit anywhere, and its mask: 0 where there is no ink, else the digit plus 1."""
    canvas_YX, place = draw_one(pool)
    mask_YX = np.where(canvas_YX >= INK, pool.digits[place] + 1, 0).astype(np.uint8)
    return canvas_YX, {"mask": mask_YX, "scans": scans_of(pool, [place])}


def draw_one(pool: Pool) -> tuple[np.ndarray, int]:
    """A canvas with one digit of any size anywhere, and the place of its scan in the pool."""
    [place] = pool.take(1)
    drawn_YX = pool.draw(place, sides=LARGE)
    top, left = pool.corner(drawn_YX, room=(SIDE, SIDE))
    canvas_YX = np.zeros((SIDE, SIDE), dtype=np.uint8)
    paste(canvas_YX, drawn_YX, top=top, left=left)
    return canvas_YX, place


def paste(canvas_YX: np.ndarray, drawn_YX: np.ndarray, *, top: int, left: int) -> None:
    """Draws onto the canvas."""
    canvas_YX[top : top + len(drawn_YX), left : left + len(drawn_YX)] = drawn_YX


def ink_box(canvas_YX: np.ndarray) -> dict[str, int]:
    """Edges of the ink in pixels; right and bottom are the first column and row without any."""
    rows, columns = np.nonzero(canvas_YX >= INK)
    return {
        "left": int(columns.min()),
        "top": int(rows.min()),
        "right": int(columns.max()) + 1,
        "bottom": int(rows.max()) + 1,
    }


def scans_of(pool: Pool, places: list[int]) -> list[int]:
    """Numbers, among all scans, of those drawn."""
    return pool.numbers[places].tolist()


DRAWERS: Mapping[str, Callable[[Pool], tuple[np.ndarray, Row]]] = {
    "digits": draw_digits,
    "pairs": draw_pair,
    "boxes": draw_box,
    "masks": draw_mask,
}
