"""Names of territories, languages, scripts and currencies, and the language that they are in.

    Peru  en        Allemagne  fr        Schwedische Krone  de

They are CLDR's names in English, German and French. Whatever a name means stands in one split, in
all three languages; a name that stands twice, be it in two languages, is left out. Names that the
corpus of phrases keeps from its training are not in training here either.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.phrases import HARD_SHARE, LOCALES, Phrase, in_all, name_of, read_lexicons

KINDS = ("territories", "languages", "scripts", "currencies")
VALIDATION_SHARE = 0.25  # of the names that are kept from training


def read_names() -> Iterator[Phrase]:
    """All that CLDR names in all three languages, in the order of kinds and codes."""
    for kind in KINDS:
        codes = set.intersection(*(set(map(str, getattr(locale, kind))) for locale in LOCALES))
        for code in sorted(codes):
            yield in_all(lambda locale, kind=kind, code=code: name_of(locale, kind=kind, code=code))


def split_names(*, seed: int) -> Mapping[str, list[tuple[str, str]]]:
    """Rows of each split, (name, language), in an order drawn by chance."""
    seen, hard = read_lexicons(np.random.default_rng(seed))  # as the corpus of phrases does
    trained, held = (
        {name for names in lexicon.names.values() for name in names} for lexicon in (seen, hard)
    )
    rng = np.random.default_rng((seed, 1))
    splits: dict[str, list[Phrase]] = {"test": [], "validation": [], "train": []}
    for name in read_names():
        kept_out, kept_apart = rng.random(2)
        if name in held or (name not in trained and kept_out < HARD_SHARE):
            splits["validation" if kept_apart < VALIDATION_SHARE else "test"].append(name)
        else:
            splits["train"].append(name)
    counts = Counter(
        text for names in splits.values() for name in names for text in spellings(name)
    )
    rows = {split: unique_rows(names, counts=counts) for split, names in splits.items()}
    return {split: [found[i] for i in rng.permutation(len(found))] for split, found in rows.items()}


def spellings(phrase: Phrase) -> list[str]:
    """A name in each language, capitals and small letters alike."""
    return [name.casefold() for name in asdict(phrase).values()]


def unique_rows(names: Iterable[Phrase], *, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """The names that stand once among all of all splits, each with its language."""
    return [
        (name, language)
        for phrase in names
        for language, name in asdict(phrase).items()
        if counts[name.casefold()] == 1
    ]


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/names.tsv` with the columns name and language."""
    with whole_folder(folder) as part:
        for split, rows in split_names(seed=seed).items():
            write_lines(part / split / "names.tsv", map("\t".join, [("name", "language"), *rows]))
