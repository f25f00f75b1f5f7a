from typing import Any

import pytest

from mmtrain.masks.banks import MaskError
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.subtasks import Subtasks, resolve_subtasks
from pipelines.errors import UnknownNameError
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature

TARGETS = {
    "shape": LabelFeature(classes=("square", "circle", "star", "3")),
    "digit": LabelFeature(classes=("0", "1")),
    "speech": TextFeature(),
}
LOSSES = {"shape": "sigmoid_cross_entropy", "digit": "cross_entropy", "speech": "cross_entropy"}


def resolve(subtasks: dict[str, tuple[str, ...]], **settings: Any) -> Subtasks:
    config = PruningConfig(subtasks=subtasks, **settings)
    return resolve_subtasks(config, targets=TARGETS, losses=LOSSES)


MIXED = {
    "round": ("shape:circle", "shape:star"), "edged": ("shape:star", "shape:square", "shape:3"),
    "heard": ("speech", "digit"),
}  # fmt: skip


def test_tasks_and_classes_of_unions():
    subtasks = resolve(MIXED)
    assert subtasks.containing("shape") == ("round", "edged")
    assert subtasks.containing("digit") == ("heard",)
    assert subtasks.tasks(["heard", "round"]) == ("shape", "speech", "digit")
    assert subtasks.classes(["round"], task="shape") == (1, 2)
    assert subtasks.classes(["edged", "round", "heard"], task="shape") == (0, 1, 2, 3)
    assert subtasks.classes(["heard"], task="shape") == ()
    assert subtasks.classes(["heard"], task="digit") is None


def test_a_whole_task_among_class_groups_is_all_its_classes():
    subtasks = resolve({"round": ("shape:circle",), "all": ("shape", "digit", "speech")})
    assert subtasks.classes(["round"], task="shape") == (1,)
    assert subtasks.classes(["round", "all"], task="shape") == (0, 1, 2, 3)


def test_a_class_is_its_name_before_its_number():
    names = resolve({"s": ("shape:3", "shape:0")}, uncovered="allow")
    assert names.classes(["s"], task="shape") == (0, 3)
    numbers = resolve({"s": ("shape:1", "shape:2")}, uncovered="allow")
    assert numbers.classes(["s"], task="shape") == (1, 2)


@pytest.mark.parametrize(("entry", "message"), [
    ("shapes", "no task 'shapes'; nearest: shape"),
    ("shape:cirle", "no class of task shape 'cirle'; nearest: circle"),
    ("shape:9", "no class of task shape '9'"),
    ("shape:", "no class of task shape ''"),
])  # fmt: skip
def test_an_unknown_task_or_class_names_the_nearest(entry, message):
    with pytest.raises(UnknownNameError, match=message):
        resolve({"one": (entry,)}, uncovered="allow")


def test_a_task_without_classes_is_not_divided():
    with pytest.raises(MaskError, match="task speech has text targets, which have no classes"):
        resolve({"one": ("speech:0",)}, uncovered="allow")


def test_divided_classes_need_scores_of_their_own():
    with pytest.raises(MaskError, match="'sigmoid_cross_entropy' in place of 'cross_entropy'"):
        resolve({"one": ("digit:0",)}, uncovered="allow")


def test_overlap_is_refused_where_it_is_not_allowed():
    with pytest.raises(MaskError, match="round and edged both have class shape:star"):
        resolve(MIXED, overlap="refuse")
    with pytest.raises(MaskError, match="one and two both have task digit"):
        resolve({"one": ("digit",), "two": ("digit", "speech")}, overlap="refuse")


def test_what_no_subtask_has_is_refused_unless_allowed():
    part = {"round": ("shape:circle", "shape:star"), "heard": ("speech",)}
    with pytest.raises(MaskError, match="no subtask has task digit, class shape:square, class sha"):
        resolve(part)
    assert resolve(part, uncovered="allow").containing("digit") == ()
