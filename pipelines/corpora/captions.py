"""Captions: two or three handwritten digits on one canvas, and which digit stands where.

    top left three, bottom right seven

A canvas has four quarters; a digit stands anywhere inside its quarter. Scans keep the split that
they have in the corpus of digits, so that a test canvas shows no scan of any training picture.
"""

import json
from pathlib import Path

import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.digits import enlarge, load_scans, partition
from pipelines.modalities.image import to_png

NUM_EXAMPLES = {"train": 3_000, "validation": 200, "test": 300}
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
QUARTER = 24  # pixels; a digit has 16
ENLARGED = 2


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/captions.jsonl` (image, caption, scans) and its `images/*.png`."""
    scans, digits = load_scans()
    with whole_folder(folder) as part:
        for number, (split, members) in enumerate(sorted(partition(len(scans)).items())):
            rng = np.random.default_rng((seed, number))
            (part / split / "images").mkdir(parents=True)
            rows = []
            for place in range(NUM_EXAMPLES[split]):
                chosen = rng.choice(members, size=rng.integers(2, 4), replace=False)
                quarters = np.sort(rng.choice(4, size=len(chosen), replace=False))
                canvas = draw_canvas(scans[chosen], quarters=quarters, rng=rng)
                name = f"images/{place:05d}.png"
                (part / split / name).write_bytes(to_png(canvas))
                caption = write_caption(digits[chosen], quarters=quarters)
                rows.append({"image": name, "caption": caption, "scans": chosen.tolist()})
            write_lines(part / split / "captions.jsonl", map(json.dumps, rows))


def draw_canvas(
    scans_SYX: np.ndarray, *, quarters: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Scans, each anywhere inside its quarter: uint8 (48, 48)."""
    canvas = np.zeros((2 * QUARTER, 2 * QUARTER), dtype=np.uint8)
    for scan, quarter in zip(scans_SYX, quarters.tolist(), strict=True):
        drawn = enlarge(scan, ENLARGED)
        side = drawn.shape[0]
        row, column = rng.integers(0, QUARTER - side + 1, size=2)
        row, column = row + QUARTER * (quarter // 2), column + QUARTER * (quarter % 2)
        canvas[row : row + side, column : column + side] = drawn
    return canvas


def write_caption(digits: np.ndarray, *, quarters: np.ndarray) -> str:
    """Which digit stands where, in reading order."""
    pairs = zip(digits.tolist(), quarters.tolist(), strict=True)
    return ", ".join(f"{PLACES[quarter]} {DIGIT_WORDS[digit]}" for digit, quarter in pairs)
