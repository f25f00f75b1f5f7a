"""Spoken digits and commands: one to four digits, or a short phrase, in many voices.

    three five nine two                 open the red door

Each string is said by espeak-ng with a dialect, a variant, a speed and a pitch drawn for the clip.
A string belongs to one split, whoever says it.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.captions import DIGIT_WORDS
from pipelines.corpora.espeak import Saying, speak_all

# Clips of each split: of strings of one, two, three and four digits, and of phrases
NUM_EXAMPLES = {
    "test": (0, 15, 90, 135, 60),
    "validation": (0, 10, 60, 90, 40),
    "train": (150, 450, 850, 1_150, 600),
}
# Strings of each held-out split: single digits, being ten, are for training alone
NUM_STRINGS = {"test": (0, 15, 90, 135, 12), "validation": (0, 10, 60, 90, 8)}
DIALECTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc")
VARIANTS = ("", *(f"+m{i}" for i in range(1, 9)), *(f"+f{i}" for i in range(1, 6)))
WORDS_PER_MINUTE = (240, 340)
PITCH = (30, 70)
PITCH_RANGE = (30, 70)

VERBS = ("open", "close", "find", "take")
COLOURS = ("", "red ", "green ", "blue ", "white ")
THINGS = ("door", "window", "box", "lamp")


def all_strings() -> list[list[str]]:
    """All strings of one, two, three and four digits, in words, and all phrases."""
    lengths = (itertools.product(DIGIT_WORDS, repeat=length) for length in range(1, 5))
    digits = [[" ".join(words) for words in strings] for strings in lengths]
    parts = itertools.product(VERBS, COLOURS, THINGS)
    return [*digits, [f"{verb} the {colour}{thing}" for verb, colour, thing in parts]]


def split_strings(*, seed: int) -> Mapping[str, list[list[str]]]:
    """Strings of each split, for each kind in turn; no string is in two."""
    rng = np.random.default_rng((seed, 0))
    splits: dict[str, list[list[str]]] = {"test": [], "validation": [], "train": []}
    for kind, strings in enumerate(all_strings()):
        left = [strings[i] for i in rng.permutation(len(strings))]
        for split, counts in NUM_STRINGS.items():
            splits[split].append(left[: counts[kind]])
            left = left[counts[kind] :]
        splits["train"].append(left[: NUM_EXAMPLES["train"][kind]])
    return splits


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/clips.jsonl` (audio, text, voice) and `<split>/clips/*.wav`, 22,050 Hz."""
    with whole_folder(folder) as part:
        sayings: list[Saying] = []
        for number, (split, strings) in enumerate(sorted(split_strings(seed=seed).items())):
            (part / split / "clips").mkdir(parents=True)
            rng = np.random.default_rng((seed, 1, number))
            chosen = say_strings(strings, split=split, rng=rng)
            sayings += chosen
            rows = (
                {"audio": f"clips/{Path(one.path).name}", "text": one.text, "voice": one.voice}
                for one in chosen
            )
            write_lines(part / split / "clips.jsonl", map(json.dumps, rows))
        speak_all(sayings, folder=part)


def say_strings(strings: list[list[str]], *, split: str, rng: np.random.Generator) -> list[Saying]:
    """The clips of a split: its strings in turn, each time in another voice."""
    texts = [
        text
        for pool, count in zip(strings, NUM_EXAMPLES[split], strict=True)
        for text in itertools.islice(itertools.cycle(pool), count)
    ]
    return [
        Saying(
            path=f"{split}/clips/{place:05d}.wav",
            text=text,
            voice=str(rng.choice(DIALECTS)) + str(rng.choice(VARIANTS)),
            words_per_minute=int(rng.integers(*WORDS_PER_MINUTE)),
            pitch=int(rng.integers(*PITCH)),
            pitch_range=int(rng.integers(*PITCH_RANGE)),
        )
        for place, text in enumerate(texts)
    ]
