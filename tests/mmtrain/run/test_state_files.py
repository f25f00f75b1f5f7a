"""Small files that a run, a sweep or a prediction reads back after a crash."""

import json

import pytest

from mmtrain.predict.bulk_output import (
    COMPLETED,
    MANIFEST,
    PARTS,
    BatchOutputError,
    PartReport,
    Request,
    open_output,
    record,
)
from mmtrain.recipe import load_recipe
from mmtrain.run.runlog import Routing, RunLogError, read_routing, read_series
from mmtrain.store.journal import Journal, JournalError
from mmtrain.tuning.run import RECIPE, SWEEP, _claim
from mmtrain.tuning.sweep import SweepConfig, SweepError, Uniform

TORN = ["", "{", '{"key": "a"', "[]", "null", "\0\0\0", '{"unheard": 1}']


# ---- the mark of the tracking journal


@pytest.mark.parametrize("left", TORN)
def test_a_damaged_mark_is_named_with_a_remedy_and_its_lock_is_let_go(tmp_path, left):
    journal = Journal.open(tmp_path, resume=False)
    journal.append({"kind": "tags", "values": {}})
    journal.close()
    (tmp_path / "mark.json").write_text(left)
    for _ in range(2):  # the second finds no lock of the first
        with pytest.raises(JournalError) as caught:
            Journal.open(tmp_path, resume=True, wait_s=0)
        assert str(caught.value).startswith(f"{tmp_path / 'mark.json'} is damaged: ")
        assert "remove it" in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "mark.json").unlink()
    again = Journal.open(tmp_path, resume=True, wait_s=0)
    events, _ = again.unsent(max_events=9)
    assert [event["kind"] for event, _ in events] == ["tags"]
    again.close()


# ---- the output of batch prediction

REQUEST = Request(
    model="m", input="i", column="c", tasks=("t",), beam_size=1, rows_a_part=2,
    format="jsonl", model_uri="m", input_uri="i",
)  # fmt: skip


def report_of(number: int) -> PartReport:
    return PartReport(
        file=f"part-{number:05d}.jsonl", number=number, first_row=2 * number, num_rows=2,
        num_failed=0, num_bytes=3, failures={},
    )  # fmt: skip


@pytest.fixture
def output(tmp_path):
    """An output folder with two committed parts."""
    with open_output(tmp_path, REQUEST) as committed:
        assert committed == {}
        for number in (0, 1):
            (tmp_path / f"part-{number:05d}.jsonl").write_text("{}\n")
            record(tmp_path, report_of(number))
    return tmp_path


@pytest.mark.parametrize("left", TORN)
def test_a_damaged_manifest_of_an_output_is_named_with_a_remedy(output, left):
    (output / MANIFEST).write_text(left)
    with (
        pytest.raises(BatchOutputError, match=rf"{MANIFEST} is damaged: .*; remove {output}, or"),
        open_output(output, REQUEST),
    ):
        pass


@pytest.mark.parametrize("left", ["\0\0\0\n", "{}\n", "[1]\n", '{"file": "part-'])
def test_parts_are_noted_up_to_a_damaged_line_and_the_rest_is_done_again(output, caplog, left):
    lines = (output / PARTS).read_text().splitlines(keepends=True)
    (output / PARTS).write_text(lines[0] + left + lines[1])
    with open_output(output, REQUEST) as committed:
        assert committed == {0: report_of(0)}
    assert "cut off at byte" in caplog.text
    assert (output / PARTS).read_text() == lines[0]


def test_what_a_killed_call_left_of_a_manifest_is_no_other_file(tmp_path):
    (tmp_path / f".{MANIFEST}.123").write_text("{")
    with open_output(tmp_path, REQUEST) as committed:
        assert committed == {}
    assert {file.name for file in tmp_path.iterdir()} == {MANIFEST, "_lock"}
    assert not (tmp_path / COMPLETED).exists()


# ---- a sweep's folder


@pytest.fixture
def sweep(tmp_path):
    """A sweep that has claimed its folder: recipe, sweep, folder."""
    recipe = load_recipe("debug")
    config = SweepConfig(
        name="s", space={"optimizer.learning_rate": Uniform(low=0.001, high=0.002)}
    )
    _claim(recipe, config, out=tmp_path, resume=False)
    return recipe, config, tmp_path


@pytest.mark.parametrize("name", [SWEEP, RECIPE])
@pytest.mark.parametrize("left", TORN)
def test_a_damaged_file_of_a_sweep_is_named_with_a_remedy(sweep, name, left):
    recipe, config, out = sweep
    (out / name).write_text(left)
    with pytest.raises(SweepError, match=rf"{out / name} is damaged .*; give another --out"):
        _claim(recipe, config, out=out, resume=True)


def test_a_sweep_that_died_while_it_claimed_its_folder_is_claimed_anew(sweep):
    recipe, config, out = sweep
    (out / SWEEP).unlink()
    _claim(recipe, config, out=out, resume=False)
    assert (out / SWEEP).exists()


# ---- a run's log


@pytest.mark.parametrize("left", ["", "{", "[]", "\0\0", '{"tasks": ["a"]}'])
def test_damaged_routing_counts_are_named_with_a_remedy(tmp_path, left):
    path = tmp_path / "routing.json"
    path.write_text(left)
    with pytest.raises(RunLogError, match=rf"{path} is damaged: .*; remove it"):
        read_routing(path)
    path.unlink()
    assert read_routing(path) == Routing()


@pytest.mark.parametrize("left", [b'{"st', b"\0\0\n", b"\xff\xfe\n"])
def test_a_series_ends_at_its_first_damaged_line(tmp_path, left):
    path = tmp_path / "series.jsonl"
    path.write_bytes(json.dumps({"step": 1}).encode() + b"\n" + left)
    assert read_series(path) == [{"step": 1}]
