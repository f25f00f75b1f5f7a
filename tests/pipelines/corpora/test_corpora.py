"""What every corpus promises: the same seed, the same bytes; nothing in training and in test."""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.build import load_maker
from pipelines.corpora import speech, treebank, whole_folder
from pipelines.corpora.espeak import Saying, speak_all
from pipelines.errors import BuildError, UnknownNameError
from pipelines.modalities.audio import AudioFeature, read_samples
from pipelines.modalities.tree import Tree, parse_brackets
from pipelines.tasks import load_task

LANGUAGES = ("en", "de", "fr")
HELD_OUT = ("validation", "test")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for name in ("digits", "captions", "phrases", "speech", "treebank", "name_languages"):
        load_maker(name).make(folder / name, seed=0)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def json_rows(folder: Path, split: str) -> list[dict]:
    [manifest] = (folder / split).glob("*.jsonl")
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def phrase_rows(raw: Path, split: str) -> list[dict[str, str]]:
    with (raw / "phrases" / split / "phrases.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def names(raw: Path, split: str) -> set[str]:
    lines = (raw / "name_languages" / split / "names.tsv").read_text().splitlines()[1:]
    return {line.partition("\t")[0] for line in lines}


def tree_lines(raw: Path, split: str) -> list[str]:
    return (raw / "treebank" / split / "trees.mrg").read_text().splitlines()


def texts(raw: Path, split: str) -> dict[str, set[str]]:
    """All texts of a split, by corpus, as the model reads or writes them."""
    return {
        "speech": {row["text"] for row in json_rows(raw / "speech", split)},
        "captions": {row["caption"] for row in json_rows(raw / "captions", split)},
        "treebank": {" ".join(parse_brackets(tree).words()) for tree in tree_lines(raw, split)},
        "names": names(raw, split),
        "phrases": {row[code] for row in phrase_rows(raw, split) for code in LANGUAGES},
    }


def test_sizes_are_those_announced(raw: Path):
    def count(split: str) -> dict[str, int]:
        return {
            "speech": len(json_rows(raw / "speech", split)),
            "digits": len(list((raw / "digits" / split).glob("*/*.png"))),
            "captions": len(json_rows(raw / "captions", split)),
            "treebank": len(tree_lines(raw, split)),
        }

    assert count("train") == {"speech": 3200, "digits": 1347, "captions": 3000, "treebank": 5000}
    assert count("validation") == {"speech": 200, "digits": 150, "captions": 200, "treebank": 200}
    assert count("test") == {"speech": 300, "digits": 300, "captions": 300, "treebank": 300}
    assert len(phrase_rows(raw, "train")) > 11_000
    held_out = [len(phrase_rows(raw, split)) for split in ("validation", "test", "test_hard")]
    assert held_out == [200, 300, 300]


@pytest.mark.parametrize("name", ["digits", "captions", "phrases", "speech", "treebank"])
def test_the_same_seed_gives_the_same_bytes(raw: Path, tmp_path: Path, name: str):
    load_maker(name).make(tmp_path / name, seed=0)
    assert digests(tmp_path / name) == digests(raw / name)


@pytest.mark.parametrize("name", ["phrases", "treebank"])
def test_another_seed_gives_other_text(raw: Path, tmp_path: Path, name: str):
    load_maker(name).make(tmp_path / name, seed=1)
    assert digests(tmp_path / name) != digests(raw / name)


def test_no_scan_is_in_two_splits_of_digits_and_captions(raw: Path):
    def scans(split: str) -> set[int]:
        singles = {int(path.stem) for path in (raw / "digits" / split).glob("*/*.png")}
        shown = {scan for row in json_rows(raw / "captions", split) for scan in row["scans"]}
        assert shown <= singles
        return singles

    for one, other in combinations(("train", "validation", "test"), 2):
        assert not scans(one) & scans(other)


def test_no_picture_is_in_two_splits(raw: Path):
    def pixels(split: str) -> set[bytes]:
        folders = (raw / "digits" / split, raw / "captions" / split)
        paths = (path for folder in folders for path in folder.rglob("*.png"))
        return {np.asarray(Image.open(path)).tobytes() for path in paths}

    for split in HELD_OUT:
        assert not pixels("train") & pixels(split)


@pytest.mark.parametrize("split", HELD_OUT)
@pytest.mark.parametrize("corpus", ["speech", "treebank", "phrases", "names"])
def test_no_text_of_a_held_out_split_is_in_training_of_any_task(raw: Path, corpus: str, split: str):
    trained = set().union(*texts(raw, "train").values())
    assert not texts(raw, split)[corpus] & trained


def test_names_of_the_harder_split_are_not_in_training_of_any_task(raw: Path):
    hard = {row[code] for row in phrase_rows(raw, "test_hard") for code in LANGUAGES}
    assert not hard & set().union(*texts(raw, "train").values())


def test_validation_and_test_share_no_text(raw: Path):
    for corpus in ("speech", "treebank", "phrases", "names"):
        assert not texts(raw, "validation")[corpus] & texts(raw, "test")[corpus]


def test_no_string_stands_in_two_phrases(raw: Path):
    rows = all_phrases(raw)
    counts = Counter(text for row in rows for text in {row[code] for code in LANGUAGES})
    assert not [text for text, count in counts.items() if count > 1]


def test_names_of_the_harder_split_stand_in_no_other_phrase(raw: Path):
    others = "\n".join(row[code] for row in all_phrases(raw, but="test_hard") for code in LANGUAGES)
    alone = [row for row in phrase_rows(raw, "test_hard") if is_a_name(row)]
    names = sorted({row[code] for row in alone for code in LANGUAGES}, key=len, reverse=True)
    found = re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", others)
    assert len(alone) > 50
    assert found is None


def test_lists_of_the_harder_split_hold_its_names_alone(raw: Path):
    rows = phrase_rows(raw, "test_hard")
    names = {row["en"] for row in rows if is_a_name(row)}
    lists = [row["en"] for row in rows if not is_a_name(row) and not re.search(r"\d", row["en"])]
    trained = {row["en"] for row in phrase_rows(raw, "train")}
    assert len(lists) > 100
    for text in lists:
        assert set(re.split(r", and |, or |, | and | or ", text)) <= names | {text}, text
        assert text not in trained


def is_a_name(row: dict[str, str]) -> bool:
    return not re.search(r"\d|,| and | or ", row["en"])


def all_phrases(raw: Path, *, but: str = "") -> list[dict[str, str]]:
    splits = [split for split in ("train", *HELD_OUT, "test_hard") if split != but]
    return [row for split in splits for row in phrase_rows(raw, split)]


def test_listed_names_of_the_test_split_stand_in_training(raw: Path):
    trained = "\n".join(row["en"] for row in phrase_rows(raw, "train"))
    for row in phrase_rows(raw, "test"):
        if not re.search(r"\d", row["en"]):
            names = re.split(r", and |, or |, | and | or ", row["en"])
            assert all(name in trained for name in names), row


def test_phrases_hold_no_special_spaces_and_no_empty_cell(raw: Path):
    for row in all_phrases(raw):
        for code in LANGUAGES:
            assert row[code] == " ".join(row[code].split())
            assert row[code]


@pytest.mark.parametrize(
    "row",
    [
        {"en": "Germany", "de": "Deutschland", "fr": "Allemagne"},
        {"en": "in 35 weeks", "de": "in 35 Wochen", "fr": "dans 35 semaines"},
        {"en": "March 15, 2021", "de": "15. M\u00e4rz 2021", "fr": "15 mars 2021"},
    ],
)
def test_known_translations_are_there(raw: Path, row: dict[str, str]):
    assert row in [
        row for split in ("train", *HELD_OUT, "test_hard") for row in phrase_rows(raw, split)
    ]


def test_clips_are_short_and_fit_their_task(raw: Path):
    feature = load_task("speech_recognition").inputs
    assert isinstance(feature, AudioFeature)
    lengths = []
    for row in json_rows(raw / "speech", "test"):
        data = (raw / "speech" / "test" / row["audio"]).read_bytes()
        samples, rate_hz = read_samples(data, max_s=feature.max_s)
        assert rate_hz == 22_050
        assert np.abs(samples).max() > 0.05
        lengths.append(len(samples) / rate_hz)
    assert 0.2 < min(lengths) < max(lengths) < 1.6


def test_many_voices_speak(raw: Path):
    assert len({row["voice"] for row in json_rows(raw / "speech", "train")}) == 56


def test_spoken_strings_have_one_to_four_digits_or_are_phrases():
    digits, phrases = speech.all_strings()[:4], speech.all_strings()[4]
    assert [len(strings) for strings in digits] == [10, 100, 1_000, 10_000]
    assert len(phrases) == 80
    assert "open the red door" in phrases


def saying(**changes: object) -> Saying:
    settings = {"path": "a.wav", "text": "one", "voice": "en-us", "words_per_minute": 250}
    return Saying(**{**settings, "pitch": 50, "pitch_range": 50, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("voice", ["en-gb", "en-us+nobody"])
def test_a_voice_that_is_not_there_is_an_error_and_not_another_voice(tmp_path: Path, voice: str):
    with pytest.raises(BuildError, match="espeak-ng"):
        speak_all([saying(), saying(path="b.wav", voice=voice)], folder=tmp_path)


def test_no_sentence_has_two_trees():
    grammar = treebank.Grammar(np.random.default_rng(11))
    trees: dict[tuple[str, ...], object] = {}
    for _ in range(5_000):
        tree = grammar.sentence()
        assert trees.setdefault(tree.words(), tree) == tree


def test_with_goes_to_the_verb_when_it_is_a_tool_of_that_verb_and_else_to_the_noun():
    tools = {verb: kind.tools for kind in treebank.VERB_KINDS for verb in kind.verbs}
    grammar = treebank.Grammar(np.random.default_rng(12))
    seen = Counter()
    for _ in range(2_000):
        for phrase in verb_phrases(grammar.sentence()):
            verb = phrase.children[0].word
            for place in ("VP", "NP"):
                parents = phrase.children if place == "VP" else phrase.children[1].children
                for child in parents:
                    if child.label == "PP" and child.children[0].word == "with":
                        noun = child.words()[-1]
                        assert (noun in tools[str(verb)]) == (place == "VP"), child.words()
                        seen[place] += 1
    assert min(seen["VP"], seen["NP"]) > 50


def verb_phrases(tree: Tree) -> Iterator[Tree]:
    """Verb phrases with an object."""
    if tree.label == "VP" and len(tree.children) > 1 and tree.children[0].label == "VBD":
        yield tree
    for child in tree.children:
        yield from verb_phrases(child)


def test_a_maker_that_fails_leaves_what_was_there(tmp_path: Path):
    folder = tmp_path / "corpus"
    with whole_folder(folder) as part:
        (part / "old").touch()
    with pytest.raises(OSError, match="disk"):
        fail_halfway(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["corpus", "old"]


def fail_halfway(folder: Path) -> None:
    with whole_folder(folder) as part:
        (part / "new").touch()
        raise OSError("no space left on disk")


def test_unknown_maker_names_the_nearest():
    with pytest.raises(UnknownNameError, match="treebank"):
        load_maker("treebanks")
