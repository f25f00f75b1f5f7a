"""Canvases, moving digits, spoken digits and names: what their tasks count on."""

import csv
import hashlib
import io
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.build import load_maker
from pipelines.corpora import (
    canvases,
    moving_digits,
    name_languages,
    phrases,
    speech,
    spoken_digits,
)
from pipelines.corpora.canvases import ink_box
from pipelines.corpora.digits import load_scans, partition
from pipelines.corpora.moving_digits import DIRECTIONS, Motion, draw_frames, draw_motion, to_mp4
from pipelines.modalities.audio import AudioFeature, read_samples, to_wav
from pipelines.tasks import load_task

SPLITS = ("train", "validation", "test")
MAKERS = ("canvases", "moving_digits", "spoken_digits", "name_languages")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for name in ("digits", "captions", *MAKERS):
        load_maker(name).make(folder / name, seed=0)
    return folder


def rows(raw: Path, corpus: str, split: str, kind: str) -> list[dict]:
    lines = (raw / corpus / split / f"{kind}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def name_rows(raw: Path, split: str) -> list[tuple[str, str]]:
    with (raw / "name_languages" / split / "names.tsv").open(encoding="utf-8") as file:
        found = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["name"], row["language"]) for row in found]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def scans_shown(raw: Path, split: str) -> set[int]:
    """Scans of a split in all corpora that show any."""
    found = {int(path.stem) for path in (raw / "digits" / split).glob("*/*.png")}
    lines = (raw / "captions" / split / "captions.jsonl").read_text().splitlines()
    found |= {scan for line in lines for scan in json.loads(line)["scans"]}
    for kind in canvases.NUM_EXAMPLES:
        found |= {scan for row in rows(raw, "canvases", split, kind) for scan in row["scans"]}
    for kind in moving_digits.NUM_EXAMPLES:
        found |= {row["scan"] for row in rows(raw, "moving_digits", split, kind)}
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(raw, tmp_path, name):
    load_maker(name).make(tmp_path / name, seed=0)
    assert digests(tmp_path / name) == digests(raw / name)


def test_another_seed_gives_other_names(raw, tmp_path):
    load_maker("name_languages").make(tmp_path / "names", seed=1)
    assert digests(tmp_path / "names") != digests(raw / "name_languages")


@pytest.mark.parametrize("corpus", [canvases, moving_digits, spoken_digits])
def test_manifests_have_the_sizes_announced(raw, corpus):
    name = corpus.__name__.rpartition(".")[2]
    for kind, counts in corpus.NUM_EXAMPLES.items():
        assert {split: len(rows(raw, name, split, kind)) for split in SPLITS} == counts


def test_training_sets_are_very_unequal():
    sizes = [
        counts["train"]
        for corpus in (canvases, moving_digits, spoken_digits)
        for counts in corpus.NUM_EXAMPLES.values()
    ]
    assert sorted(sizes) == [100, 500, 1_000, 2_000, 2_000, 2_000, 2_000, 4_000]


def test_no_scan_is_in_two_splits_of_any_corpora_of_any_family(raw):
    for one, other in combinations(SPLITS, 2):
        assert not scans_shown(raw, one) & scans_shown(raw, other)


def test_a_held_out_split_shows_all_of_its_scans(raw):
    members = partition(len(load_scans()[1]))
    assert scans_shown(raw, "test") == set(members["test"].tolist())


def test_no_canvas_is_in_two_splits(raw):
    def pictures(split: str) -> set[bytes]:
        return {
            pixels(raw / "canvases" / split / row["image"]).tobytes()
            for kind in canvases.NUM_EXAMPLES
            for row in rows(raw, "canvases", split, kind)
        }

    for one, other in combinations(SPLITS, 2):
        assert not pictures(one) & pictures(other)


def test_a_canvas_holds_one_to_three_digits_which_are_those_of_its_scans(raw):
    digits = load_scans()[1]
    found = rows(raw, "canvases", "test", "digits")
    assert {len(row["scans"]) for row in found} == {1, 2, 3}
    for row in found:
        assert row["digits"] == sorted({str(digits[scan]) for scan in row["scans"]})


def test_both_digits_of_a_pair_lie_in_their_halves(raw):
    digits = load_scans()[1]
    for row in rows(raw, "canvases", "test", "pairs"):
        left, right = row["scans"]
        assert row["pair"] == {"left": str(digits[left]), "right": str(digits[right])}
        canvas = pixels(raw / "canvases" / "test" / row["image"])
        assert canvas[:, :16].max() >= canvases.INK
        assert canvas[:, 16:].max() >= canvases.INK


def test_a_box_is_the_smallest_around_the_ink():
    canvas = np.zeros((32, 32), dtype=np.uint8)
    canvas[3:9, 5] = 200
    canvas[8, 5:12] = 64
    canvas[20, 20] = 63  # no ink
    assert ink_box(canvas) == {"left": 5, "top": 3, "right": 12, "bottom": 9}


def test_a_mask_has_the_digit_plus_one_where_there_is_ink(raw):
    digits = load_scans()[1]
    for row in rows(raw, "canvases", "test", "masks")[:50]:
        canvas = pixels(raw / "canvases" / "test" / row["image"])
        mask = pixels(raw / "canvases" / "test" / row["mask"])
        assert mask.shape == canvas.shape == (32, 32)
        np.testing.assert_array_equal(mask > 0, canvas >= 64)
        assert set(mask[mask > 0]) == {digits[row["scans"][0]] + 1}


def test_clips_are_grey_and_have_16_frames_of_32_pixels(raw):
    for row in rows(raw, "moving_digits", "test", "directions")[:20]:
        frames = read_frames((raw / "moving_digits" / "test" / row["video"]).read_bytes())
        assert frames.shape == (16, 32, 32)


def read_frames(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def test_frames_come_back_from_the_file_nearly_as_they_were():
    rng = np.random.default_rng(0)
    frames = draw_frames(load_scans()[0][0], motion=draw_motion(rng, direction="up"), rng=rng)
    back = read_frames(to_mp4(frames, frames_per_s=25))
    assert np.abs(back.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_digit_moves_as_its_direction_says_and_stays_in_the_picture(direction):
    right, down = DIRECTIONS[direction]
    rng = np.random.default_rng(7)
    for _ in range(50):
        motion = draw_motion(rng, direction=direction)
        corners = [motion.corner(frame) for frame in range(16)]
        assert all(0 <= place <= 32 - motion.side for corner in corners for place in corner)
        moved = np.subtract(corners[-1], corners[0])
        assert np.sign(moved).tolist() == [right, down]
        assert np.abs(moved).max() >= 8


def test_the_same_speed_moves_the_ink_by_that_many_pixels():
    scan = np.full((8, 8), 255, dtype=np.uint8)
    motion = Motion(side=8, start=(2.0, 20.0), step=(1.0, -0.5))
    frames = draw_frames(scan, motion=motion, rng=np.random.default_rng(0))
    first, last = (ink_box(frame) for frame in (frames[0], frames[-1]))
    assert first == {"left": 2, "top": 20, "right": 10, "bottom": 28}
    assert last == {"left": 17, "top": 12, "right": 25, "bottom": 20}  # 15 right, 7.5 up


def test_the_path_of_a_digit_does_not_tell_its_direction_but_by_its_order():
    rng = np.random.default_rng(3)
    middles = {
        direction: np.mean([middle(draw_motion(rng, direction=direction)) for _ in range(400)])
        for direction in ("left", "right")
    }
    assert middles["left"] == pytest.approx(middles["right"], abs=0.6)


def middle(motion: Motion) -> float:
    """Column of the digit's middle, half way."""
    return motion.start[0] + motion.step[0] * 7.5 + motion.side / 2


def test_no_combination_of_digit_voice_and_dialect_is_in_two_splits(raw):
    def said(split: str) -> set[tuple[str, str, str]]:
        found = [row for kind in spoken_digits.NUM_EXAMPLES for row in clips(raw, split, kind)]
        return {(row["digit"], row["voice"], row["dialect"]) for row in found}

    for one, other in combinations(SPLITS, 2):
        assert not said(one) & said(other)
    assert [len(said(split)) for split in SPLITS] == [240, 32, 48]


def clips(raw: Path, split: str, kind: str) -> list[dict]:
    return rows(raw, "spoken_digits", split, kind)


def test_no_sound_is_in_two_splits(raw):
    def sounds(split: str) -> set[bytes]:
        folder = raw / "spoken_digits" / split / "clips"
        return {path.read_bytes() for path in folder.glob("*.wav")}

    for one, other in combinations(SPLITS, 2):
        assert not sounds(one) & sounds(other)


def test_noise_has_as_much_less_power_as_asked(tmp_path):
    sound = 0.1 * np.sin(np.arange(22_050))
    path = tmp_path / "a.wav"
    path.write_bytes(to_wav(sound, rate_hz=22_050))
    spoken_digits.add_noise(path, ratio_db=6.0, rng=np.random.default_rng(0))
    noisy, rate_hz = read_samples(path.read_bytes(), max_s=2.0)
    assert (len(noisy), rate_hz) == (22_050, 22_050)
    noise = noisy - sound
    assert 10 * np.log10(np.mean(sound**2) / np.mean(noise**2)) == pytest.approx(6.0, abs=0.1)


def test_spoken_digits_are_slower_than_any_clip_of_speech():
    assert spoken_digits.WORDS_PER_MINUTE[1] <= speech.WORDS_PER_MINUTE[0]


@pytest.mark.parametrize("split", SPLITS)
def test_each_digit_and_each_voice_is_heard_in_each_split(raw, split):
    assert len({row["digit"] for row in clips(raw, split, "digits")}) == 10
    assert {row["voice"] for row in clips(raw, split, "voices")} == set(spoken_digits.VOICES)


def test_spoken_digits_fit_their_task(raw):
    feature = load_task("spoken_digit").inputs
    assert isinstance(feature, AudioFeature)
    lengths = []
    for path in (raw / "spoken_digits" / "test" / "clips").glob("*.wav"):
        samples, rate_hz = read_samples(path.read_bytes(), max_s=feature.max_s)
        assert rate_hz == 22_050
        assert np.abs(samples).max() > 0.02
        lengths.append(len(samples) / rate_hz)
    whole = feature.num_frames * feature.hop_ms / 1000
    assert min(lengths) > 0.15
    assert np.mean(np.asarray(lengths) > whole) < 0.05  # cut at their end


def test_names_of_three_languages_are_in_equal_shares(raw):
    for split, least in (("train", 2_000), ("validation", 60), ("test", 200)):
        counts = Counter(language for _, language in name_rows(raw, split))
        assert counts.total() > least
        assert max(counts.values()) < 0.45 * counts.total()


def test_no_name_stands_twice_whatever_its_capitals(raw):
    names = [name.casefold() for split in SPLITS for name, _ in name_rows(raw, split)]
    assert len(names) == len(set(names))


def test_names_that_are_equal_in_two_languages_are_left_out(raw):
    found = {row for split in SPLITS for row in name_rows(raw, split)}
    assert ("Germany", "en") in found
    assert ("Allemagne", "fr") in found
    assert not {("Peru", "en"), ("Peru", "de"), ("Albania", "de")} & found


def test_what_a_name_means_is_in_one_split(raw):
    split_of = {row: split for split in SPLITS for row in name_rows(raw, split)}
    for name in name_languages.read_names():
        spelt = ((name.en, "en"), (name.de, "de"), (name.fr, "fr"))
        assert len({split_of[row] for row in spelt if row in split_of}) <= 1


def test_names_that_phrases_hold_out_are_held_out_here(raw):
    trained = {name for name, _ in name_rows(raw, "train")}
    _, hard = phrases.read_lexicons(np.random.default_rng(0))
    names = [name for kind in hard.names.values() for name in kind]
    assert len(names) > 50
    assert not trained & {text for name in names for text in (name.en, name.de, name.fr)}
