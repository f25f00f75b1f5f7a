"""Scores of trials: 0 at the trivial baseline, 1 at the single-task reference."""

import json

import pytest

from mmtrain.evaluate.results import Results, write_results
from mmtrain.tuning.score import combine_scores, measure_tasks, read_references
from mmtrain.tuning.sweep import SweepError
from tests.mmtrain.example_results import example_results


def test_score_is_0_at_the_baseline_and_1_at_the_reference():
    # WER 4.0, trivial 97.5; BLEU 2.0, trivial 3.1
    found = measure_tasks(
        example_results(), references={"speech_recognition": 2.0, "translation_en_de": 25.1}
    )
    assert found["speech_recognition"].score == pytest.approx((97.5 - 4.0) / (97.5 - 2.0))
    assert found["translation_en_de"].score == pytest.approx(-1.1 / 22.0)


def test_without_a_reference_the_metrics_best_value_is_1():
    found = measure_tasks(example_results(), references={})
    assert found["speech_recognition"].reference == 0.0
    assert found["translation_en_de"].reference == 100.0


@pytest.mark.parametrize(
    ("task", "value"), [("speech_recognition", 97.5), ("translation_en_de", 3)]
)
def test_reference_no_better_than_trivial_is_refused(task, value):
    with pytest.raises(SweepError, match=f"task {task}: the reference"):
        measure_tasks(example_results(), references={task: value})


@pytest.mark.parametrize(
    ("combine", "weights", "expected"),
    [
        ("mean", {}, 0.4),
        ("mean", {"a": 3.0}, 0.3),
        ("mean", {"a": 0.0}, 0.6),
        ("minimum", {}, 0.2),
        ("minimum", {"a": 0.0}, 0.6),
    ],
)
def test_scores_are_combined(combine, weights, expected):
    found = combine_scores({"a": 0.2, "b": 0.6}, combine=combine, weights=weights)
    assert found == pytest.approx(expected)


def test_no_task_that_counts_is_refused():
    with pytest.raises(SweepError, match="weight above 0"):
        combine_scores({"a": 0.2}, combine="mean", weights={"a": 0.0, "b": 1.0})


def test_references_are_read_from_what_single_task_runs_leave(tmp_path):
    results: Results = example_results()
    write_results(results, path=tmp_path / "results.json")
    expected = {"speech_recognition": 4.0, "translation_en_de": 2.0}
    assert read_references(tmp_path / "results.json") == expected
    (tmp_path / "references.json").write_text(json.dumps(expected))
    assert read_references(tmp_path) == expected
    rows = [
        {"row": "a net a task", "scores": {"digit": 90.0}},
        {"row": "a net a task", "scores": {"digit": 94.0}},
        {"row": "weighted", "scores": {"digit": 1.0}},
    ]
    (tmp_path / "study.json").write_text(json.dumps(rows))
    assert read_references(tmp_path / "study.json") == {"digit": 92.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}', "3", '{"a": NaN}'])
def test_file_without_references_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SweepError, match=r"x\.json"):
        read_references(tmp_path / "x.json")


def test_references_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SweepError, match="cannot read"):
        read_references(tmp_path / "none")
