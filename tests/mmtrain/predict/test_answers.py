"""Answers of every kind of target, in words, as arrays and as pictures."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import tensor

from mmtrain.evaluate.drawing import draw_prediction, draw_target, is_drawn
from mmtrain.predict.answers import NOTHING, Prediction, load_kind
from pipelines.errors import UnknownNameError
from pipelines.modalities.text import TextFeature
from tests.mmtrain.example_kinds import PICTURE, SIDE, TASKS, specs


def answers(name: str, logits: torch.Tensor) -> list[Prediction]:
    feature = TASKS[name].targets
    return load_kind(feature).answers(logits, specs()[name], feature)


def text(name: str, array: object) -> str:
    feature = TASKS[name].targets
    return load_kind(feature).text(np.asarray(array), feature)


def test_a_class_of_the_sigmoid_loss_has_a_probability_of_its_own():
    (answer,) = answers("shade", tensor([[0.0, 2.0]]))
    assert answer.text == "light"
    assert answer.scores == pytest.approx({"light": 0.880797, "dark": 0.5})
    assert answer.log_prob == pytest.approx(np.log(0.880797))


def test_a_class_of_the_softmax_loss_shares_one_probability_and_equals_keep_their_order():
    (answer,) = answers("motion", tensor([[1.0, 1.0]]))
    assert answer.scores == pytest.approx({"left": 0.5, "right": 0.5})
    assert answer.text == "left"


def test_several_classes_are_there_from_half_on():
    several, none = answers("things", tensor([[3.0, -1.0, 0.0], [-2.0, -2.0, -2.0]]))
    assert several.labels == ("cat", "owl")
    assert several.text == "cat, owl" == text("things", [1, 0, 1])
    assert list(several.scores) == ["cat", "owl", "dog"]
    p = 1 / (1 + np.exp(-np.array([3.0, 1.0, 0.0])))
    assert several.log_prob == pytest.approx(np.log(p).sum())
    assert (none.labels, none.text) == ((), NOTHING)
    assert text("things", [0, 0, 0]) == NOTHING


def test_each_part_has_its_own_class():
    (answer,) = answers("action", tensor([[0.0, 1.0, 5.0, 0.0, 0.0]]))
    assert answer.text == "verb pour, noun egg" == text("action", [1, 0])
    assert answer.labels == ("pour", "egg")
    assert answer.scores["verb pour"] == pytest.approx(0.731059)


def test_values_are_in_their_own_units_and_have_no_probability():
    (answer,) = answers("place", tensor([[0.0, 0.25, 0.5, 1.0]]))
    assert answer.values == {"left": 0.0, "top": 4.0, "right": 8.0, "bottom": 16.0}
    assert answer.text == "left 0, top 4, right 8, bottom 16"
    assert answer.log_prob is None


def test_a_mask_is_a_picture_of_class_ids_with_the_share_of_each():
    logits = torch.zeros(1, SIDE, SIDE, 3)
    logits[..., 1] = 1.0
    logits[0, :4, :, 2] = 9.0
    (answer,) = answers("ground", logits)
    assert answer.mask is not None
    ids = np.asarray(Image.open(io.BytesIO(answer.mask)))
    assert (ids[:4] == 2).all()
    assert (ids[4:] == 1).all()
    assert answer.text == "sea 75 %, sand 25 %"
    assert base64.b64decode(str(answer.to_dict()["mask"])) == answer.mask


@pytest.mark.parametrize("name", list(TASKS))
def test_every_answer_goes_to_json(name: str):
    shape = (1, SIDE, SIDE, 3) if name == "ground" else (1, specs()[name].num_outputs or 0)
    (answer,) = answers(name, torch.zeros(shape))
    assert json.loads(json.dumps(answer.to_dict()))["text"] == answer.text


def test_texts_have_no_scores_to_read():
    with pytest.raises(UnknownNameError, match="multilabel"):
        load_kind(TextFeature())


def test_masks_and_boxes_are_drawn_over_their_picture():
    feature = TASKS["ground"].targets
    assert is_drawn(PICTURE, feature)
    ids = np.zeros((SIDE, SIDE), dtype=np.uint8)
    ids[:8] = 1
    grey = np.full((SIDE, SIDE, 1), 100, dtype=np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(draw_target(grey, targets=feature, array=ids))))
    assert drawn.shape == (96, 96, 3)
    assert (drawn[60] == 100).all()  # class 0 is the ground: the picture shines through
    assert (drawn[10] != 100).any()


def test_a_box_is_drawn_where_it_is_also_when_its_edges_are_swapped():
    feature = TASKS["place"].targets
    grey = np.full((SIDE, SIDE, 1), 100, dtype=np.uint8)
    drawn = [
        draw_prediction(grey, targets=feature, answer=answer)
        for answer in answers("place", tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 1.0, 0.0, 0.0]]))
    ]
    assert drawn[0] == drawn[1]
    pixels = np.asarray(Image.open(io.BytesIO(drawn[0])))
    assert (pixels[0, :48] != 100).all(axis=-1).all()
    assert (pixels[10, 60:] == 100).all()


def test_classes_and_clips_are_not_drawn():
    assert not is_drawn(PICTURE, TASKS["shade"].targets)
    assert not is_drawn(TASKS["motion"].inputs, TASKS["ground"].targets)
