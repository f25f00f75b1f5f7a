"""The results file: written whole, read back, refused when it is none of ours."""

from pathlib import Path

import pytest

from mmtrain.evaluate.results import ResultsError, read_results, write_results
from tests.mmtrain.example_results import example_results


def test_results_read_back_are_those_written(tmp_path: Path):
    write_results(example_results(), path=tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == example_results()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_missing_or_foreign_file_is_refused_with_its_path(tmp_path: Path):
    with pytest.raises(ResultsError, match="mmtrain evaluate"):
        read_results(tmp_path / "results.json")
    (tmp_path / "other.json").write_text('{"tasks": 3}')
    with pytest.raises(ResultsError, match=r"other\.json"):
        read_results(tmp_path / "other.json")


def test_totals_count_the_tasks_that_beat_their_baseline():
    totals = example_results().totals
    assert (totals.tasks, totals.beating_baseline) == (2, 1)
    assert totals.evaluation_seconds == 7.0
