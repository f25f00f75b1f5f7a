"""Phrases in English, German and French, composed by CLDR's own formatters through `babel`.

    Peru, Germany, and France      Peru, Deutschland und Frankreich      Pérou, Allemagne et France
    in 3 days                      in 3 Tagen                            dans 3 jours

Names of territories, languages, scripts and currencies, alone and in lists; dates and intervals;
time spans, measures and money. Each row is true in all three languages, so that four directions
of translation share the rows and their splits. `test` has unseen combinations of names that
training phrases hold; `test_hard` has names that no phrase of another split holds.
"""

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from babel import Locale
from babel.dates import format_date, format_interval, format_timedelta
from babel.lists import format_list
from babel.numbers import format_currency, get_territory_currencies
from babel.units import format_unit

from pipelines.corpora import whole_folder, write_lines

LANGUAGES = ("en", "de", "fr")
LOCALES = tuple(Locale.parse(language) for language in LANGUAGES)

# Rows of each kind: in training, in validation, in test. Names alone are for training.
NUM_EXAMPLES = {
    "lists": (4_800, 100, 150),
    "dates": (1_600, 25, 40),
    "intervals": (1_200, 20, 30),
    "spans": (900, 15, 25),
    "measures": (1_200, 20, 30),
    "money": (1_300, 20, 25),
}
NUM_HARD = 300
HARD_SHARE = 0.12  # of the names of each kind
ZIPF_SHIFT = 4  # names are drawn with chances 1 / (rank + shift), as words are in any text

SCRIPTS = re.findall(
    r"\w+",
    """
    Adlm Arab Armn Beng Bopo Brai Cans Cher Copt Cyrl Deva Egyp Ethi Geor Goth Grek Gujr Guru Hang
    Hans Hant Hebr Hira Java Jpan Kana Khmr Knda Kore Laoo Latn Mlym Mong Mymr Nkoo Ogam Orya Runr
    Sinh Sund Syrc Taml Telu Tfng Thaa Thai Tibt Xsux Yiii
    """,
)
UNITS = re.findall(
    r"\S+",
    """
    length-meter length-kilometer length-centimeter length-mile length-foot length-inch mass-gram
    mass-kilogram mass-tonne mass-pound volume-liter volume-milliliter volume-cup area-hectare
    area-square-meter area-square-kilometer temperature-celsius speed-kilometer-per-hour
    energy-kilowatt-hour energy-calorie power-watt electric-volt digital-megabyte digital-gigabyte
    frequency-hertz angle-degree concentr-percent
    """,
)
SYMBOLS = ("EUR", "USD", "GBP", "JPY", "CHF")
SpanUnit = Literal["second", "minute", "hour", "day", "week", "month", "year"]
SPANS: Mapping[SpanUnit, datetime.timedelta] = {
    "second": datetime.timedelta(seconds=1),
    "minute": datetime.timedelta(minutes=1),
    "hour": datetime.timedelta(hours=1),
    "day": datetime.timedelta(days=1),
    "week": datetime.timedelta(days=7),
    "month": datetime.timedelta(days=30),  # babel's own months and years
    "year": datetime.timedelta(days=365),
}


@dataclass(frozen=True, slots=True)
class Phrase:
    """One meaning in three languages."""

    en: str
    de: str
    fr: str


Formatter = Callable[[Locale], str]
Drawer = Callable[[np.random.Generator], Phrase]


def in_all(formatter: Formatter) -> Phrase:
    """The phrase that a formatter writes; CLDR's no-break and thin spaces become blanks."""
    return Phrase(*(" ".join(formatter(locale).split()) for locale in LOCALES))


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The names that a split may use.

    Args:
        names: for each kind, its names in the order of how often they are drawn.
        currencies: ISO codes, in the same order, for amounts of money.
    """

    names: Mapping[str, Sequence[Phrase]]
    currencies: Sequence[str]


def read_lexicons(rng: np.random.Generator) -> tuple[Lexicon, Lexicon]:
    """The names of CLDR: those that training may hold, and those of the harder split."""
    seen: dict[str, list[Phrase]] = {}
    hard: dict[str, list[Phrase]] = {}
    currencies: list[str] = []
    for kind, codes in read_codes().items():
        order = [codes[i] for i in rng.permutation(len(codes))]
        named = [in_all(partial(name_of, kind=kind, code=code)) for code in order]
        num_hard = round(HARD_SHARE * len(named))
        hard[kind], seen[kind] = named[:num_hard], named[num_hard:]
        currencies = order  # the last kind's
    num_hard = len(hard["currencies"])
    return Lexicon(seen, currencies[num_hard:]), Lexicon(hard, currencies[:num_hard])


def read_codes() -> dict[str, list[str]]:
    """Codes of each kind that CLDR names in all three languages, currencies last.

    ISO's territories and two-letter languages, scripts of today or of fame, legal tender.
    """
    english = LOCALES[0]
    territories = {code for code in map(str, english.territories) if re.fullmatch("[A-Z]{2}", code)}
    territories -= {"EU", "EZ", "QO", "UN", "ZZ"}  # unions and what is unknown
    languages = {code for code in map(str, english.languages) if re.fullmatch("[a-z]{2}", code)}
    tender = (get_territory_currencies(place, include_details=False) for place in territories)
    codes = {
        "territories": territories,
        "languages": languages,
        "scripts": SCRIPTS,
        "currencies": {str(code) for codes in tender for code in codes},
    }
    return {
        kind: sorted(
            code for code in members if all(code in getattr(locale, kind) for locale in LOCALES)
        )
        for kind, members in codes.items()
    }


def name_of(locale: Locale, *, kind: str, code: str) -> str:
    """A name as CLDR has it, e.g. kind "territories", code "PE"."""
    return getattr(locale, kind)[code]


def draw_by_rank(rng: np.random.Generator, *, count: int, size: int) -> list[int]:
    """Distinct ranks below `size`, low ones more often (Zipf's law)."""
    chances = 1.0 / (np.arange(size) + ZIPF_SHIFT)
    return rng.choice(size, size=count, replace=False, p=chances / chances.sum()).tolist()


def draw_list(rng: np.random.Generator, *, lexicon: Lexicon) -> Phrase:
    """Two or three names of one kind, joined by "and" or "or"."""
    kinds = list(lexicon.names)
    names = lexicon.names[kinds[int(rng.choice(len(kinds), p=[0.5, 0.25, 0.1, 0.15]))]]
    count = 2 if rng.random() < 0.7 else 3
    chosen = [names[rank] for rank in draw_by_rank(rng, count=count, size=len(names))]
    style = "standard" if rng.random() < 0.75 else "or"
    return Phrase(
        *(
            format_list(list(items), style=style, locale=locale)
            for items, locale in zip(zip(*map(astuple, chosen), strict=True), LOCALES, strict=True)
        )
    )


def draw_day(rng: np.random.Generator) -> datetime.date:
    """A day from 1950 to 2029."""
    return datetime.date(1950, 1, 1) + datetime.timedelta(days=int(rng.integers(80 * 365)))


def draw_date(rng: np.random.Generator) -> Phrase:
    """A date with its month in full, half of them with the day of the week.

    Never the medium format: "May 3, 2020" would have two translations.
    """
    day, style = draw_day(rng), "long" if rng.random() < 0.5 else "full"
    return in_all(lambda locale: format_date(day, format=style, locale=locale))


def draw_interval(rng: np.random.Generator) -> Phrase:
    """Days of one month or of two, or months of one year."""
    first = draw_day(rng)
    if rng.random() < 0.3:
        first = first.replace(month=int(rng.integers(1, 12)), day=1)
        last = first.replace(month=int(rng.integers(first.month + 1, 13)))
        return in_all(lambda locale: format_interval(first, last, "yMMMM", locale=locale))
    last = first + datetime.timedelta(days=int(rng.integers(1, 40)))
    return in_all(lambda locale: format_interval(first, last, "MMMd", locale=locale))


def draw_span(rng: np.random.Generator) -> Phrase:
    """Some time from now or ago."""
    unit, count = list(SPANS)[int(rng.integers(len(SPANS)))], int(rng.integers(1, 100))
    span = SPANS[unit] * (count if rng.random() < 0.5 else -count)
    return in_all(partial(write_span, span=span, unit=unit))


def write_span(locale: Locale, *, span: datetime.timedelta, unit: SpanUnit) -> str:
    """A span in its own unit, however large its count ("in 90 days")."""
    return format_timedelta(
        span, granularity=unit, threshold=1e9, add_direction=True, locale=locale
    )


def draw_measure(rng: np.random.Generator) -> Phrase:
    """A number, a third of them with one decimal, and its unit in full."""
    unit, value = UNITS[int(rng.integers(len(UNITS)))], float(rng.integers(1, 1_000))
    number = value / 10 if rng.random() < 0.33 else int(value)
    return in_all(lambda locale: format_unit(number, unit, length="long", locale=locale))


def draw_money(rng: np.random.Generator, *, lexicon: Lexicon, symbols: Sequence[str]) -> Phrase:
    """An amount with the currency's name, or with its symbol."""
    amount = float(rng.choice([rng.integers(1, 100), rng.integers(100, 2_000) / 10]))
    if symbols and rng.random() < 0.3:
        code = symbols[int(rng.integers(len(symbols)))]
        return in_all(lambda locale: format_currency(amount, code, locale=locale))
    [rank] = draw_by_rank(rng, count=1, size=len(lexicon.currencies))
    code = lexicon.currencies[rank]
    return in_all(lambda locale: format_currency(amount, code, format_type="name", locale=locale))


class Gatherer:
    """Keeps rows apart: no string, in whatever language, stands in two rows."""

    def __init__(self, *, hard_names: Sequence[Phrase]) -> None:
        self.strings: set[str] = set()
        by_language = zip(*map(astuple, hard_names), strict=True)
        self.hard = tuple(names_pattern(names) for names in by_language)

    def holds_hard_name(self, phrase: Phrase) -> bool:
        """Whether a name of the harder split is in the phrase, in any language."""
        texts = astuple(phrase)
        return any(pattern.search(text) for pattern in self.hard for text in texts)

    def take(self, phrases: Iterator[Phrase], *, count: int, hard: bool) -> list[Phrase]:
        """The next `count` phrases that are new and, unless `hard`, hold no hard name."""
        taken: list[Phrase] = []
        for phrase in phrases:
            strings = set(astuple(phrase))
            if self.strings & strings or (not hard and self.holds_hard_name(phrase)):
                continue
            self.strings |= strings
            taken.append(phrase)
            if len(taken) == count:
                break
        return taken


def names_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the names where it stands as words of its own."""
    longest_first = sorted(names, key=len, reverse=True)
    words = "|".join(re.escape(name) for name in longest_first)
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def endless(draw: Drawer, *, rng: np.random.Generator) -> Iterator[Phrase]:
    """Draws for ever."""
    while True:
        yield draw(rng)


def draw_phrases(*, seed: int) -> dict[str, list[Phrase]]:
    """The rows of each split."""
    rng = np.random.default_rng(seed)
    seen, hard = read_lexicons(rng)
    gatherer = Gatherer(hard_names=[name for names in hard.names.values() for name in names])
    alone = [name for names in seen.names.values() for name in names]
    train = gatherer.take(iter(alone), count=len(alone), hard=False)
    validation, test = list[Phrase](), list[Phrase]()
    drawers: dict[str, Drawer] = {
        "lists": partial(draw_list, lexicon=without_hard(seen, gatherer=gatherer)),
        "dates": draw_date,
        "intervals": draw_interval,
        "spans": draw_span,
        "measures": draw_measure,
        "money": partial(draw_money, lexicon=seen, symbols=SYMBOLS),
    }
    for kind, draw in drawers.items():
        counts = NUM_EXAMPLES[kind]
        rows = gatherer.take(endless(draw, rng=rng), count=sum(counts), hard=False)
        train += rows[: counts[0]]
        validation += rows[counts[0] : counts[0] + counts[1]]
        test += rows[counts[0] + counts[1] :]
    return {
        "train": [train[i] for i in rng.permutation(len(train))],
        "validation": validation,
        "test": test,
        "test_hard": draw_hard(hard, gatherer=gatherer, rng=rng),
    }


def without_hard(lexicon: Lexicon, *, gatherer: Gatherer) -> Lexicon:
    """The lexicon less names that have a hard name inside ("Guinea" in "Papua New Guinea")."""
    names = {
        kind: [name for name in members if not gatherer.holds_hard_name(name)]
        for kind, members in lexicon.names.items()
    }
    return Lexicon(names, lexicon.currencies)


def draw_hard(lexicon: Lexicon, *, gatherer: Gatherer, rng: np.random.Generator) -> list[Phrase]:
    """Unseen names alone, then in lists and amounts of money."""
    alone = [name for names in lexicon.names.values() for name in names]
    rows = gatherer.take(iter(alone), count=len(alone), hard=True)
    amounts = partial(draw_money, lexicon=lexicon, symbols=())
    rows += gatherer.take(endless(amounts, rng=rng), count=50, hard=True)
    lists = endless(partial(draw_list, lexicon=lexicon), rng=rng)
    return rows + gatherer.take(lists, count=NUM_HARD - len(rows), hard=True)


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/phrases.tsv` with the columns en, de and fr."""
    with whole_folder(folder) as part:
        for split, phrases in draw_phrases(seed=seed).items():
            rows = [LANGUAGES, *map(astuple, phrases)]
            write_lines(part / split / "phrases.tsv", map("\t".join, rows))
