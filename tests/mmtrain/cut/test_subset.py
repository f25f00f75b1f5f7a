"""Subsets as users ask for them, and what is refused with the way out."""

import re

import pytest

from mmtrain.cut.subset import Subset, SubsetError, choose_subset
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.subtasks import Subtasks, resolve_subtasks
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature
from pipelines.modalities.label import LabelFeature

TARGETS: dict[str, Feature] = {
    "digit": LabelFeature(classes=tuple("0123")),
    "animal": LabelFeature(classes=("big cat", "dog")),
}


def subtasks(**declared: tuple[str, ...]) -> Subtasks:
    losses = dict.fromkeys(TARGETS, "sigmoid_cross_entropy")
    config = PruningConfig(subtasks=declared, uncovered="allow")
    return resolve_subtasks(config, targets=TARGETS, losses=losses)


DIGITS = subtasks(low=("digit:0", "digit:1"), high=("digit:2", "digit:3"))
WHOLE = subtasks(counting=("digit",), naming=("animal",))
MIXED = subtasks(low=("digit:0", "digit:1"), cats=("animal:0",))


def choose(declared: Subtasks, *names: str, classes: tuple[str, ...] = ()) -> Subset:
    return choose_subset(declared, targets=TARGETS, names=names, classes=classes)


def test_a_subset_has_the_tasks_and_classes_of_its_subtasks():
    assert choose(DIGITS, "low") == Subset(("low",), ("digit",), {"digit": (0, 1)})
    assert choose(WHOLE, "naming") == Subset(("naming",), ("animal",))
    both = choose(MIXED, "cats", "low")
    assert both == Subset(("low", "cats"), ("digit", "animal"), {"digit": (0, 1), "animal": (0,)})


def test_the_order_of_subtasks_makes_no_difference():
    assert choose(DIGITS, "high", "low").key == choose(DIGITS, "low", "high").key


def test_classes_alone_take_the_subtasks_that_have_them():
    chosen = choose(DIGITS, classes=("3", "0"))
    assert chosen == Subset(("low", "high"), ("digit",), {"digit": (0, 3)}, ("0", "3"))


def test_classes_narrow_what_the_subtasks_have():
    assert choose(DIGITS, "low", "high", classes=("1",)).classes == {"digit": (1,)}


def test_all_classes_of_the_subtasks_are_the_subtasks():
    assert choose(DIGITS, "low", classes=("1", "0")) == choose(DIGITS, "low")


def test_a_class_of_one_task_leaves_other_tasks_whole():
    assert choose(MIXED, "low", "cats", classes=("digit:1",)).classes == {
        "digit": (1,), "animal": (0,)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "names", "classes", "says"),
    [
        (DIGITS, (), (), "the subset is empty; name subtasks of low, high"),
        (DIGITS, ("lo",), (), "no subtask of the model 'lo'; nearest: low"),
        (DIGITS, ("low",), ("9",), "no class of task digit '9'"),
        (DIGITS, ("low",), ("2",), "class '2' of digit is in none of low; it is in high"),
        (WHOLE, ("counting",), ("2",), "subtasks are whole tasks"),
        (MIXED, ("low",), ("1",), "of which task? write animal:1"),
        (MIXED, ("low",), ("digits:1",), "no task with classes to choose from 'digits'"),
        (MIXED, (), ("animal:dog",), "is in no subtask"),
    ],
)
def test_what_makes_no_subset_is_refused(declared, names, classes, says):
    with pytest.raises((SubsetError, UnknownNameError), match=re.escape(says)):
        choose(declared, *names, classes=classes)


def test_an_alias_has_letters_that_a_registry_takes():
    assert choose(DIGITS, "low", "high").alias == "subset-low_high"
    assert choose(MIXED, classes=("animal:big cat", "digit:0")).alias == (
        "subset-low_cats-classes-0_big-cat"
    )
