"""Trees: a bracketed constituency tree to token ids of its linearised form, ended by EOS.

Bracketed, as treebanks write it, the words are leaves under their part of speech:

    (S (NP (DT the) (NN dog)) (VP (VBD slept)))

Linearised, the words are left out, for the sentence has them: a part of speech is a bare symbol and
stands for the next word of the sentence. Sentence and linearised form give the exact tree back.

    (S (NP DT NN ) (VP VBD ) )
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities import text as text_modality
from pipelines.vocabulary import Vocabulary

# What EVALB's COLLINS.prm leaves out when it scores: https://nlp.cs.nyu.edu/evalb/
UNSCORED_LABELS = frozenset({"TOP", "ROOT", "S1", ""})
UNSCORED_TAGS = frozenset({",", ":", "``", "''", ".", "-NONE-"})
SAME_LABELS = {"PRT": "ADVP"}

MAX_DEPTH = 200


class TreeFeature(Feature):
    """Token ids of a linearised tree, int32 (L,), the last one EOS; the model's net is text's."""

    dtype: ClassVar[str] = "int32"

    modality: str = "tree"
    max_tokens: int = Field(
        default=256, ge=2, description="Longest tree kept, in tokens, EOS included."
    )

    @property
    def net(self) -> str:
        """Linearised trees are text to the model."""
        return "text"

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """A tree of `max_tokens`."""
        return (self.max_tokens,)

    def example(self) -> str:
        """A number in figures."""
        return "(NP (CD 7))"

    def completed(self, text: str, *, source: str) -> str | None:
        """The bracketed tree over the source's words; None: it is not one over so many words."""
        try:
            return to_brackets(delinearise(text, sentence=source))
        except BadExampleError:
            return None


FEATURE = TreeFeature


@dataclass(frozen=True, slots=True)
class Tree:
    """A constituent with its children, or a part of speech with its word (None: left out)."""

    label: str
    children: tuple["Tree", ...] = ()
    word: str | None = None

    def tags(self) -> Iterator["Tree"]:
        """The parts of speech from left to right: what spans count in."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.tags()

    def words(self) -> tuple[str, ...]:
        """The sentence. Linearised trees have none, and give ()."""
        return tuple(tag.word for tag in self.tags() if tag.word is not None)


def parse_brackets(text: str) -> Tree:
    """A tree as treebanks write it; an outer pair of brackets without a label is taken off.

    Raises:
        BadExampleError: brackets unbalanced, a constituent without label or children, a word
            outside a part of speech, or anything after the tree.
    """
    symbols = re.findall(r"[()]|[^\s()]+", text)
    tree, place = _read_constituent(symbols, place=0, depth=0)
    if place < len(symbols):
        raise BadExampleError(f"not one tree: {symbols[place]!r} after the end of {text[:60]!r}")
    return tree.children[0] if tree.label == "" and len(tree.children) == 1 else tree


def _read_constituent(symbols: Sequence[str], *, place: int, depth: int) -> tuple[Tree, int]:
    """The constituent that opens at `place`, and the place after it."""
    if place >= len(symbols) or symbols[place] != "(":
        found = symbols[place] if place < len(symbols) else "the end"
        raise BadExampleError(f"no opening bracket: {found!r} in its place")
    if depth > MAX_DEPTH:
        raise BadExampleError(f"too deep: over {MAX_DEPTH} brackets inside each other")
    place += 1
    label = ""
    if place < len(symbols) and symbols[place] not in "()":
        label, place = symbols[place], place + 1
    if place < len(symbols) and symbols[place] not in "()":
        return _read_word(symbols, place=place, label=label)
    children: list[Tree] = []
    while place < len(symbols) and symbols[place] == "(":
        child, place = _read_constituent(symbols, place=place, depth=depth + 1)
        children.append(child)
    if place >= len(symbols):
        raise BadExampleError(f"unbalanced brackets: ({label} is not closed")
    if symbols[place] != ")":
        raise BadExampleError(f"word beside constituents: {symbols[place]!r} in ({label}")
    if not children:
        raise BadExampleError(f"empty constituent: ({label} ) has neither word nor children")
    return Tree(label, tuple(children)), place + 1


def _read_word(symbols: Sequence[str], *, place: int, label: str) -> tuple[Tree, int]:
    if place + 1 >= len(symbols):
        raise BadExampleError(f"unbalanced brackets: ({label} {symbols[place]} is not closed")
    if symbols[place + 1] != ")":
        raise BadExampleError(f"more than a word: ({label} {symbols[place]} {symbols[place + 1]}")
    return Tree(label, word=symbols[place]), place + 2


def to_brackets(tree: Tree) -> str:
    """A tree as treebanks write it, on one line."""
    if tree.children:
        return f"({tree.label} {' '.join(to_brackets(child) for child in tree.children)})"
    return f"({tree.label} {tree.word})"


def linearise(tree: Tree) -> str:
    """The short form that the model writes: words left out, symbols parted by blanks."""
    if not tree.children:
        return tree.label
    return f"({tree.label} {' '.join(linearise(child) for child in tree.children)} )"


def read_linearised(text: str) -> Tree:
    """The tree nearest to what a model wrote; every string has one.

    Constituents left open end at the end, closing brackets with nothing to close are passed over,
    constituents without children are left out. More or less than one tree comes under "TOP".
    """
    opened: list[tuple[str, list[Tree]]] = [("TOP", [])]
    for symbol in re.findall(r"\([^\s()]*|\)|[^\s()]+", text):
        if symbol.startswith("("):
            opened.append((symbol[1:], []))
        elif symbol != ")":
            opened[-1][1].append(Tree(symbol))
        elif len(opened) > 1:
            _close_last(opened)
    while len(opened) > 1:
        _close_last(opened)
    found = opened[0][1]
    return found[0] if len(found) == 1 and found[0].children else Tree("TOP", tuple(found))


def _close_last(opened: list[tuple[str, list[Tree]]]) -> None:
    label, children = opened.pop()
    if children:
        opened[-1][1].append(Tree(label, tuple(children)))


def delinearise(text: str, *, sentence: str) -> Tree:
    """The full tree of a linearised one and its sentence: the inverse of `linearise`.

    Raises:
        BadExampleError: brackets unbalanced, or not one part of speech for each word.
    """
    words = sentence.split()
    tree = read_linearised(text)
    if linearise(tree) != " ".join(text.split()):
        raise BadExampleError(f"unbalanced brackets: {text[:60]!r}")
    if len(list(tree.tags())) != len(words):
        raise BadExampleError(
            f"wrong length: {len(list(tree.tags()))} parts of speech, {len(words)} words"
        )
    return _with_words(tree, words=iter(words))


def _with_words(tree: Tree, *, words: Iterator[str]) -> Tree:
    if not tree.children:
        return Tree(tree.label, word=next(words))
    return Tree(tree.label, tuple(_with_words(child, words=words) for child in tree.children))


def labelled_spans(tree: Tree) -> Counter[tuple[str, int, int]]:
    """Constituents as (label, start, end), counted by EVALB's rules with its usual parameters.

    Parts of speech are no constituents, the root label TOP is left out, punctuation has no
    position, PRT counts as ADVP; a span without positions is left out.
    """
    spans: Counter[tuple[str, int, int]] = Counter()
    _count_spans(tree, start=0, spans=spans)
    return spans


def _count_spans(tree: Tree, *, start: int, spans: Counter[tuple[str, int, int]]) -> int:
    """Adds the spans of a tree that begins at `start`; its end."""
    if not tree.children:
        return start if tree.label in UNSCORED_TAGS else start + 1
    end = start
    for child in tree.children:
        end = _count_spans(child, start=end, spans=spans)
    label = re.split(r"[-=]", tree.label)[0] or tree.label
    if label not in UNSCORED_LABELS and end > start:
        spans[SAME_LABELS.get(label, label), start, end] += 1
    return end


def text_of(value: object, *, feature: Feature) -> str:
    """The linearised form of a raw bracketed tree: what is tokenised.

    Raises:
        BadExampleError: not text, not UTF-8, empty, or not a tree.
    """
    return linearise(parse_brackets(text_modality.text_of(value, feature=feature)))


def encode(value: object, *, feature: TreeFeature, vocabulary: Vocabulary) -> np.ndarray:
    """A bracketed tree, `str` or UTF-8 `bytes`, to int32 (L,).

    Raises:
        BadExampleError: not a tree (see `parse_brackets`), or longer than `max_tokens`.
    """
    return text_modality.token_ids(
        text_of(value, feature=feature), max_tokens=feature.max_tokens, vocabulary=vocabulary
    )


def decode(array: np.ndarray, *, feature: Feature, vocabulary: Vocabulary) -> str:
    """Token ids up to the first EOS to a linearised tree; `read_linearised` makes it a `Tree`."""
    return text_modality.decode(array, feature=feature, vocabulary=vocabulary)
