"""Prediction and evaluation of every kind of target, against a slow twin of one example a pass."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mmtrain.cli import app
from mmtrain.evaluate.evaluate import evaluate
from mmtrain.evaluate.results import Results
from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import PredictionError, encode_value
from mmtrain.report.report import Run, report_page
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_kinds import (
    TASKS,
    build_corpora,
    bundle,
    clip,
    picture,
    row,
)

PICTURE_TASKS = [name for name in TASKS if name != "motion"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    build_corpora(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("kinds_model") / "bundle")


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model)


@pytest.fixture(scope="module")
def results(predictor: Predictor, data_dir: Path) -> Results:
    return evaluate(predictor, data_dir=data_dir)


def score(results: Results, task: str, metric: str) -> tuple[float, float]:
    scores = results.tasks[task].splits[0].scores
    return next((s.value, s.baseline) for s in scores if s.metric == metric)


class Counted(nn.Module):
    """A body that counts its passes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.passes = body, 0

    def encode(self, inputs: object) -> object:
        self.passes += 1
        return self.body.encode(inputs)  # type: ignore[operator]  # the body's own


def test_every_head_of_a_modality_answers_in_one_body_pass_as_it_does_alone(model: Path):
    predictor = Predictor.load(model)
    counted = Counted(predictor.model.body)
    predictor.model.body = counted
    values = [picture(seed) for seed in (7, 8, 9)]
    together = predictor.predict_all(values, modality="image")
    assert counted.passes == 1
    assert [list(by_task) for by_task in together] == [PICTURE_TASKS] * 3
    for name in PICTURE_TASKS:
        alone = predictor.predict(name, values)
        assert [by_task[name] for by_task in together] == alone  # to the last bit
    assert counted.passes == 1 + len(PICTURE_TASKS)


def test_a_modality_must_be_named_where_there_are_several_and_be_one_of_them(
    predictor: Predictor,
):
    assert list(predictor.predict_all([clip(1)], modality="video")[0]) == ["motion"]
    with pytest.raises(PredictionError, match=r"takes image, video.*--modality"):
        predictor.predict_all([picture(1)])
    with pytest.raises(UnknownNameError, match="image"):
        predictor.predict_all([picture(1)], modality="images")


def test_the_command_line_answers_with_every_task_of_the_modality(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "picture.png").write_bytes(picture(3))
    path = str(tmp_path / "picture.png")
    app(["predict", str(model), path, "--modality", "image", "--json"], standalone_mode=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["task"] for line in lines] == PICTURE_TASKS
    assert set(lines[3]["values"]) == {"left", "top", "right", "bottom"}
    app(["predict", str(model), path, "--modality", "image"], standalone_mode=False)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == PICTURE_TASKS


def test_every_metric_of_every_kind_is_measured(results: Results):
    for name, task in TASKS.items():
        scores = results.tasks[name].splits[0].scores
        assert tuple(score.metric for score in scores) == task.metrics
        assert all(math.isfinite(score.value) and math.isfinite(score.baseline) for score in scores)


def test_shares_are_those_of_the_answers_one_by_one(predictor: Predictor, results: Results):
    seeds = range(100, 104)
    said = {
        name: [predictor.predict(name, [row(name, seed)[0]])[0] for seed in seeds] for name in TASKS
    }
    shade = np.mean([said["shade"][i].text == row("shade", s)[1] for i, s in enumerate(seeds)])
    assert score(results, "shade", "accuracy")[0] == pytest.approx(100 * shade)
    assert score(results, "shade", "precision_at_1")[0] == pytest.approx(100 * shade)
    parts = [
        said["action"][i].labels[k] == row("action", s)[1][part]  # type: ignore[index]
        for i, s in enumerate(seeds)
        for k, part in enumerate(("verb", "noun"))
    ]
    assert score(results, "action", "part_accuracy")[0] == pytest.approx(100 * np.mean(parts))


def test_log_perplexity_is_nats_of_all_classes_together_for_several_at_once(
    predictor: Predictor, results: Results
):
    total = 0.0
    for seed in range(100, 104):
        raw, names = row("things", seed)
        _, array = encode_value(raw, task=predictor.task("things"), vocabulary=None)
        (logits,) = predictor.logits("things", [array])
        there = torch.tensor([float(name in names) for name in ("cat", "dog", "owl")])  # type: ignore[operator]
        total += functional.binary_cross_entropy_with_logits(logits, there, reduction="sum").item()
    assert score(results, "things", "log_perplexity")[0] == pytest.approx(total / 4, rel=1e-4)


def test_baselines_learn_from_the_training_split(results: Results):
    # shades of training: dark, light, dark, dark, light; of the test: light, dark, dark, light
    assert score(results, "shade", "accuracy")[1] == 50.0
    assert 0.0 < score(results, "place", "box_iou")[1] < 100.0
    assert score(results, "ground", "log_perplexity")[1] > 0.0
    # constant scores: the share of examples that have each class, meant over classes
    present = [row("things", seed)[1] for seed in range(100, 104)]
    share = np.mean([[name in names for name in ("cat", "dog", "owl")] for names in present])  # type: ignore[operator]
    assert score(results, "things", "mean_average_precision")[1] == pytest.approx(100 * share)


def test_samples_show_clips_and_draw_masks_and_boxes(results: Results):
    def first(name: str):
        return results.tasks[name].splits[0].samples[0]

    assert first("motion").input.startswith("data:image/png;base64,")
    assert first("motion").input_kind == "image"
    for name in ("ground", "place"):
        assert first(name).prediction_picture != first(name).reference_picture
    assert first("place").log_prob is None
    assert first("things").prediction_picture is None


def test_the_report_shows_every_kind(results: Results):
    page = report_page(results, run=Run())
    for part in ("mean IoU", "MSE", "box IoU", "part accuracy", "mean average precision", "drawn"):
        assert part in page, part
    assert "None" not in page
