"""A treebank of sentences whose attachments are ambiguous in form and settled by meaning.

    saw the man with the telescope      with: how it was seen          (VP saw the man (PP with ..))
    saw the man with the knife          with: which man         (VP saw (NP the man (PP with ..)))
    cut the bread with the knife        with: how it was cut       (VP cut the bread (PP with ..))

A seeded grammar writes the trees. Its rules, which a parser has to learn from examples:

    with X          to the verb when X is a tool of that kind of verb, else to the noun before it
    on/under X      to the verb of putting, else to the noun before it
    in X            to the furniture before it, if any, else to the verb
    in T, on D      (times) to the verb
    A of B and C    joins B and C when they are of one kind, else A and C

Labels and tags are the Penn Treebank's (Marcus et al., 1993). One bracketed tree a line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.modalities.tree import Tree, to_brackets

NUM_EXAMPLES = {"train": 5_000, "validation": 200, "test": 300}

PERSONS = ("man", "woman", "girl", "boy", "teacher", "doctor", "farmer", "sailor")
ANIMALS = ("dog", "cat", "horse", "bird", "goat", "fox")
FOODS = ("bread", "cheese", "apple", "cake", "fish", "carrot")
THINGS = ("letter", "key", "cup", "book", "lamp", "box", "coin", "map")
FURNITURE = ("table", "shelf", "chair", "bed", "desk")
AREAS = ("garden", "kitchen", "park", "street", "harbour", "forest")
ATTRIBUTES = ("beard", "hat", "scarf", "coat", "umbrella")
LOOKING_TOOLS = ("telescope", "camera", "microscope")
CUTTING_TOOLS = ("knife", "axe", "saw")
PICTURES = ("picture", "story", "song", "dream")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
TIMES = ("morning", "evening", "afternoon")
ADJECTIVES = ("old", "young", "small", "red", "quiet", "happy", "strange", "heavy")
ADVERBS = ("quickly", "slowly", "carefully", "suddenly")
SLEEPING = ("slept", "laughed", "waited", "sang", "left")
SAYING = ("said", "thought", "knew", "hoped")


@dataclass(frozen=True, slots=True)
class VerbKind:
    """Verbs of one kind, the nouns that they act on, and the tools that they are done with."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    tools: tuple[str, ...] = ()
    puts: bool = False


LOOKING = VerbKind(("saw", "watched", "noticed"), PERSONS + ANIMALS + THINGS, LOOKING_TOOLS)
CUTTING = VerbKind(("cut", "chopped", "sliced"), FOODS, CUTTING_TOOLS)
MEETING = VerbKind(("met", "greeted", "followed", "fed"), PERSONS + ANIMALS)
TAKING = VerbKind(("found", "took", "wanted", "sold"), THINGS + FOODS)
PUTTING = VerbKind(("put", "left", "hid"), THINGS + FOODS, puts=True)
VERB_KINDS = (LOOKING, CUTTING, MEETING, TAKING, PUTTING)
CARRIED = ATTRIBUTES + LOOKING_TOOLS + CUTTING_TOOLS


def node(label: str, *children: Tree) -> Tree:
    """A constituent."""
    return Tree(label, children)


def leaf(tag: str, word: str) -> Tree:
    """A part of speech with its word."""
    return Tree(tag, word=word)


@dataclass(frozen=True, slots=True)
class Grammar:
    """Draws trees; each method draws one constituent, its meaning deciding where things attach."""

    rng: np.random.Generator

    def pick(self, words: Sequence[str]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def sentence(self) -> Tree:
        draw = self.rng.random()
        if draw < 0.10:
            said = node("SBAR", leaf("IN", "that"), self.clause())
            return node("S", self.subject(), node("VP", leaf("VBD", self.pick(SAYING)), said))
        if draw < 0.18:
            return node("S", self.time(), leaf(",", ","), self.subject(), self.verb_phrase())
        if draw < 0.26:
            both = node("VP", self.short_verb_phrase(), leaf("CC", "and"), self.short_verb_phrase())
            return node("S", self.subject(), both)
        return self.clause()

    def clause(self) -> Tree:
        return node("S", self.subject(), self.verb_phrase())

    def subject(self) -> Tree:
        who = self.noun(PERSONS + ANIMALS)
        draw = self.rng.random()
        if draw < 0.12:
            return node("NP", who, self.with_phrase(CARRIED))
        if draw < 0.22:
            that = node("WHNP", leaf("WDT", "that"))
            return node("NP", who, node("SBAR", that, node("S", self.short_verb_phrase())))
        if draw < 0.30:
            return node("NP", who, leaf("CC", "and"), self.noun(PERSONS + ANIMALS))
        return who

    def noun(self, nouns: Sequence[str]) -> Tree:
        adjectives = [leaf("JJ", self.pick(ADJECTIVES))] if self.chance(0.2) else []
        determiner = leaf("DT", self.pick(("the", "the", "a", "every")))
        return node("NP", determiner, *adjectives, leaf("NN", self.pick(nouns)))

    def with_phrase(self, nouns: Sequence[str]) -> Tree:
        return node("PP", leaf("IN", "with"), self.noun(nouns))

    def time(self) -> Tree:
        if self.chance(0.5):
            return node("PP", leaf("IN", "on"), node("NP", leaf("NNP", self.pick(DAYS))))
        named = node("NP", leaf("DT", "the"), leaf("NN", self.pick(TIMES)))
        return node("PP", leaf("IN", "in"), named)

    def area(self) -> Tree:
        return node("PP", leaf("IN", "in"), self.noun(AREAS))

    def surface(self) -> Tree:
        """On or under furniture; a room after it says which furniture."""
        where = self.noun(FURNITURE)
        if self.chance(0.3):
            where = node("NP", where, self.area())
        return node("PP", leaf("IN", self.pick(("on", "under"))), where)

    def short_verb_phrase(self) -> Tree:
        if self.chance(0.3):
            return node("VP", leaf("VBD", self.pick(SLEEPING)))
        kind = VERB_KINDS[int(self.rng.integers(4))]  # without putting, which needs a place
        return node("VP", leaf("VBD", self.pick(kind.verbs)), self.noun(kind.objects))

    def verb_phrase(self) -> Tree:
        if self.chance(0.15):
            return self.verb_phrase_without_object()
        kind = VERB_KINDS[int(self.rng.integers(len(VERB_KINDS)))]
        verb, what = leaf("VBD", self.pick(kind.verbs)), self.noun(kind.objects)
        if kind.puts:
            return node("VP", verb, what, self.surface(), *self.later(0.2))
        draw = self.rng.random()
        if draw < 0.15 and kind.tools:
            return node("VP", verb, what, self.with_phrase(kind.tools), *self.later(0.15))
        if draw < 0.32:
            others = [noun for noun in CARRIED if noun not in kind.tools]
            return node("VP", verb, node("NP", what, self.with_phrase(others)), *self.later(0.15))
        if draw < 0.47:
            return node("VP", verb, node("NP", what, self.surface()), *self.later(0.15))
        if draw < 0.62:
            return node("VP", verb, what, self.area(), *self.later(0.15))
        if draw < 0.80 and kind is LOOKING:
            return node("VP", verb, self.picture(), *self.later(0.15))
        return node("VP", verb, what, *self.later(0.4))

    def verb_phrase_without_object(self) -> Tree:
        adverb = [node("ADVP", leaf("RB", self.pick(ADVERBS)))] if self.chance(0.5) else []
        place = [self.area()] if self.chance(0.4) else []
        return node("VP", leaf("VBD", self.pick(SLEEPING)), *adverb, *place, *self.later(0.3))

    def later(self, probability: float) -> list[Tree]:
        """Perhaps an adverb or a time, which belong to the verb."""
        if not self.chance(probability):
            return []
        if self.chance(0.4):
            return [node("ADVP", leaf("RB", self.pick(ADVERBS)))]
        return [self.time()]

    def picture(self) -> Tree:
        """A of B and C: B and C are joined when both are persons, or both are animals."""
        what, kind = self.noun(PICTURES), PERSONS if self.chance(0.5) else ANIMALS
        shown = self.noun(kind)
        if self.chance(0.3):
            return node("NP", what, node("PP", leaf("IN", "of"), shown))
        if self.chance(0.5):
            shown = node("NP", shown, leaf("CC", "and"), self.noun(kind))
            return node("NP", what, node("PP", leaf("IN", "of"), shown))
        alone = node("NP", what, node("PP", leaf("IN", "of"), shown))
        return node("NP", alone, leaf("CC", "and"), self.noun(THINGS))


def draw_trees(*, seed: int) -> Mapping[str, list[Tree]]:
    """The trees of each split; no sentence stands twice."""
    grammar = Grammar(np.random.default_rng(seed))
    drawn: dict[tuple[str, ...], Tree] = {}
    while len(drawn) < sum(NUM_EXAMPLES.values()):
        tree = grammar.sentence()
        drawn.setdefault(tree.words(), tree)
    trees = iter(drawn.values())
    return {split: [next(trees) for _ in range(count)] for split, count in NUM_EXAMPLES.items()}


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/trees.mrg`, one bracketed tree a line."""
    with whole_folder(folder) as part:
        for split, trees in draw_trees(seed=seed).items():
            write_lines(part / split / "trees.mrg", map(to_brackets, trees))
