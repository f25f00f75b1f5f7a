"""Handwritten digits: scikit-learn's 1,797 real scans as a folder of PNG files for each class.

The scans are 8 x 8 pixels of 17 levels (UCI, Alpaydin and Kaynak, 1998), enlarged 4 times. Which
scan is in which split does not depend on the seed, for captions use the same scans.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipelines.corpora import whole_folder
from pipelines.modalities.image import to_png

PARTITION_SEED = 1998
NUM_EXAMPLES = {"test": 300, "validation": 150}  # the other 1,347 train
ENLARGED = 4


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans, uint8 (1797, 8, 8) with levels 0..255, and their digits, int64 (1797,)."""
    images_NYX, digits_N = load_digits(return_X_y=True)
    levels = np.round(images_NYX.reshape(-1, 8, 8) * (255 / 16))
    return levels.astype(np.uint8), np.asarray(digits_N)


def partition(num_scans: int) -> Mapping[str, np.ndarray]:
    """Scan numbers of each split, the same in every corpus."""
    order = np.random.default_rng(PARTITION_SEED).permutation(num_scans)
    test, validation = NUM_EXAMPLES["test"], NUM_EXAMPLES["validation"]
    return {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :],
    }


def enlarge(scan_YX: np.ndarray, times: int) -> np.ndarray:
    """A scan, uint8 (8, 8), drawn larger with linear interpolation: uint8 (8 times, 8 times)."""
    return draw(scan_YX, side=scan_YX.shape[0] * times)


def draw(scan_YX: np.ndarray, *, side: int) -> np.ndarray:
    """A scan drawn `side` pixels high and wide with linear interpolation: uint8 (side, side)."""
    picture = Image.fromarray(scan_YX).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/<digit>/<scan number>.png`, 32 x 32 grey. Nothing here is drawn by chance."""
    scans, digits = load_scans()
    with whole_folder(folder) as part:
        for split, numbers in partition(len(scans)).items():
            for digit in range(10):
                (part / split / str(digit)).mkdir(parents=True)
            for number in numbers.tolist():
                path = part / split / str(digits[number]) / f"{number:04d}.png"
                path.write_bytes(to_png(enlarge(scans[number], ENLARGED)))
