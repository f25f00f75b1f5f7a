"""Spoken digits: one word a clip, in eight voices and four dialects, in noise, for two tasks.

A combination of digit, voice and dialect stands in one split only: a test clip is said as no clip
of training is. The words are said slower than any clip of the corpus of speech, so that no clip
is in both.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.captions import DIGIT_WORDS
from pipelines.corpora.espeak import Saying, speak_all
from pipelines.corpora.speech import DIALECTS
from pipelines.modalities.audio import to_wav

# Name of the class: variant of espeak-ng
VOICES: Mapping[str, str] = {
    "alex": "Alex",
    "andy": "Andy",
    "annie": "Annie",
    "croak": "croak",
    "grandma": "grandma",
    "klatt": "klatt2",
    "storm": "Storm",
    "whisper": "whisper",
}
WORDS_PER_MINUTE = (160, 230)
PITCH = (35, 65)
PITCH_RANGE = (30, 70)
SIGNAL_TO_NOISE_DB = (-6.0, 12.0)  # power of the whole clip over that of the white noise

COMBINATIONS = {"test": 48, "validation": 32}  # of 320; training has the others
# The tasks share the clips; the one with fewer has the first of them
NUM_EXAMPLES: Mapping[str, Mapping[str, int]] = {
    "digits": {"train": 2_000, "validation": 150, "test": 300},
    "voices": {"train": 100, "validation": 150, "test": 300},
}

Combination = tuple[int, str, str]  # digit, voice, dialect


def split_combinations(*, seed: int) -> Mapping[str, Sequence[Combination]]:
    """Combinations of each split; every voice and every digit is in all of them."""
    rng = np.random.default_rng((seed, 0))
    combinations = list(itertools.product(range(10), VOICES, DIALECTS))
    order = [combinations[i] for i in rng.permutation(len(combinations))]
    test, validation = COMBINATIONS["test"], COMBINATIONS["validation"]
    return {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :],
    }


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/{digits,voices}.jsonl` (audio, digit, voice) and `clips/*.wav`, 22,050 Hz."""
    with whole_folder(folder) as part:
        sayings: list[Saying] = []
        splits = split_combinations(seed=seed)
        for number, (split, combinations) in enumerate(sorted(splits.items())):
            (part / split / "clips").mkdir(parents=True)
            rng = np.random.default_rng((seed, 1, number))
            count = max(counts[split] for counts in NUM_EXAMPLES.values())
            chosen = say_combinations(combinations, count=count, split=split, rng=rng)
            write_manifests(chosen, split=split, folder=part / split)
            sayings += [saying for saying, _ in chosen]
        speak_all(sayings, folder=part)
        rng = np.random.default_rng((seed, 2))
        for saying in sayings:
            ratio_db = float(rng.uniform(*SIGNAL_TO_NOISE_DB))
            add_noise(part / saying.path, ratio_db=ratio_db, rng=rng)


def add_noise(path: Path, *, ratio_db: float, rng: np.random.Generator) -> None:
    """Writes a WAV file anew with white noise of so much less power than the sound."""
    samples_L, rate_hz = soundfile.read(path, dtype="float64")
    deviation = np.sqrt(np.mean(samples_L**2) / 10 ** (ratio_db / 10))
    noisy_L = samples_L + rng.normal(0.0, deviation, size=len(samples_L))
    loudest = max(1.0, float(np.abs(noisy_L).max()))
    path.write_bytes(to_wav(noisy_L / loudest, rate_hz=rate_hz))


def say_combinations(
    combinations: Sequence[Combination], *, count: int, split: str, rng: np.random.Generator
) -> list[tuple[Saying, Combination]]:
    """The clips of a split: its combinations in turn, each time at another speed and pitch."""
    sayings = []
    for place, combination in enumerate(itertools.islice(itertools.cycle(combinations), count)):
        digit, voice, dialect = combination
        saying = Saying(
            path=f"{split}/clips/{place:05d}.wav",
            text=DIGIT_WORDS[digit],
            voice=f"{dialect}+{VOICES[voice]}",
            words_per_minute=int(rng.integers(*WORDS_PER_MINUTE)),
            pitch=int(rng.integers(*PITCH)),
            pitch_range=int(rng.integers(*PITCH_RANGE)),
        )
        sayings.append((saying, combination))
    return sayings


def write_manifests(
    chosen: Sequence[tuple[Saying, Combination]], *, split: str, folder: Path
) -> None:
    """One JSON object a clip; audio paths are relative to the manifest's folder."""
    rows = [
        {"audio": f"clips/{Path(saying.path).name}", "digit": str(digit)}
        | {"voice": voice, "dialect": dialect}
        for saying, (digit, voice, dialect) in chosen
    ]
    for kind, counts in NUM_EXAMPLES.items():
        write_lines(folder / f"{kind}.jsonl", map(json.dumps, rows[: counts[split]]))
