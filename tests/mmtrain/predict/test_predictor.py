"""Predictions: from raw values to answers, and clear refusals."""

from pathlib import Path

import pytest
import torch

from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import PredictionError
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_corpus import CLASSES, SENTENCES, shade


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(example_bundle(tmp_path_factory.mktemp("model") / "bundle"))


def test_a_class_comes_with_its_likeliest_scores(predictor: Predictor):
    dark, light = predictor.predict("shades", [shade(10), shade(240)])
    assert {*dark.scores} == {*CLASSES}
    assert sum(light.scores.values()) == pytest.approx(1.0)
    assert dark.text == next(iter(dark.scores))
    assert dark.log_prob == pytest.approx(torch.tensor(dark.scores[dark.text]).log().item())


def test_a_path_and_the_bytes_of_its_file_are_answered_alike(predictor: Predictor, tmp_path: Path):
    (tmp_path / "dark.png").write_bytes(shade(10))
    given = [shade(10), tmp_path / "dark.png", str(tmp_path / "dark.png")]
    assert len(set(map(str, predictor.predict("shades", given)))) == 1


def test_answers_keep_the_order_of_the_values_whatever_the_batch(predictor: Predictor):
    values = ["Germany", "Peru", "the dog", "France", "Mali"]
    together = predictor.predict("names", values)
    alone = predictor.predict("names", values, batch_size=1)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-3)


def test_a_beam_is_no_less_likely_than_greedy_in_length_one(predictor: Predictor):
    assert len(predictor.predict("names", ["Peru"], beam_size=3)) == 1


def test_a_tree_that_fits_its_sentence_has_brackets_and_another_has_none(predictor: Predictor):
    answers = predictor.predict("trees", list(SENTENCES))
    for answer in answers:
        assert (answer.tree is None) == (str(answer) == answer.text)


def test_an_unknown_task_is_answered_with_the_nearest(predictor: Predictor):
    with pytest.raises(UnknownNameError, match="nearest: names"):
        predictor.predict("name", ["Peru"])


@pytest.mark.parametrize(
    ("task", "value", "reason"),
    [
        ("shades", "gone.png", "gone.png.*No such file"),
        ("shades", b"no picture", "10 bytes, as image of shades"),
        ("names", "", "empty"),
        ("names", b"\xff\xfe", "UTF-8"),
        ("names", "far " * 40, "at most 16"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_the_reason(
    predictor: Predictor, task: str, value: str | bytes, reason: str
):
    with pytest.raises(PredictionError, match=reason):
        predictor.predict(task, [value])


def test_no_values_give_no_answers(predictor: Predictor):
    assert predictor.predict("names", []) == []
