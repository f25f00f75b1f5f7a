import json
import logging

import pytest
import torch
from safetensors.torch import save as save_file

from mmtrain import checkpoint
from mmtrain.checkpoint import (
    CheckpointError,
    Progress,
    latest,
    read_progress,
    restore,
    save,
)
from mmtrain.checkpoint import files as checkpoint_files
from mmtrain.checkpoint.files import file_facts
from mmtrain.checkpoint.manifest import to_manifest
from mmtrain.engines import EngineConfig, build_engine
from tests.mmtrain.engines.toy import SGD, toy_model, train

FILES = (
    "manifest.json",
    "part-00000.json",
    "weights-00000-00000.safetensors",
)


def engine_of(seed=0):
    return build_engine(EngineConfig(name="torch"), model=toy_model(seed), optimizer=SGD)


def progress_of(step):
    return Progress(step=step, cursors={"red": step}, recipe_json="{}", run_id="r")


def bits(engine):
    return {
        f"{state.name}/{key}": (state.step, value.numpy().tobytes())
        for state in engine.parameter_states()
        for key, value in state.tensors.items()
    }


@pytest.fixture
def engine():
    return engine_of()


@pytest.fixture
def saved(tmp_path, engine):
    """A folder with checkpoints of steps 2 and 4; the engine is at step 4."""
    for step in (2, 4):
        train(engine, first=step - 2, last=step)
        save(
            tmp_path,
            engine=engine,
            progress=Progress(step=step, cursors={"red": step}, recipe_json="{}", run_id="r"),
        )
    return tmp_path


def newest(folder):
    return folder / "step-000000004"


def test_resumed_equals_straight_to_the_bit(saved, engine):
    other = engine_of(seed=9)
    ref = latest(saved)
    assert ref is not None
    progress = restore(ref, engine=other)
    assert progress == progress_of(4)
    assert train(other, first=4, last=8) == train(engine, first=4, last=8)
    assert bits(other) == bits(engine)


def test_a_manifest_keeps_the_recipe_under_the_key_that_older_checkpoints_have(saved):
    body = json.loads((newest(saved) / "manifest.json").read_bytes())["body"]
    assert body["progress"] == {
        "step": 4, "cursors": {"red": 4}, "recipe": "{}", "run_id": "r", "mixing": {}, "corpora": {}
    }  # fmt: skip


def test_restoring_leaves_random_states_alone(saved, engine):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    restore(latest(saved), engine=engine)
    assert torch.rand(4).equal(expected)


def to_schema_1(folder):
    """The checkpoint in a folder as it was written before schema 2, with random states."""
    manifest = folder / "manifest.json"
    body = json.loads(manifest.read_bytes())["body"]
    rng = save_file({"cpu": torch.get_rng_state()})
    (folder / "rng-00000.safetensors").write_bytes(rng)
    index = json.loads((folder / "part-00000.json").read_bytes())
    index["files"]["rng-00000.safetensors"] = body["files"]["rng-00000.safetensors"] = file_facts(
        rng
    )
    del index["tensors"], body["tensors"], body["progress"]["corpora"]
    data = json.dumps(index).encode()
    (folder / "part-00000.json").write_bytes(data)
    body["files"]["part-00000.json"] = file_facts(data)
    manifest.write_bytes(to_manifest(body | {"schema": 1}))


def test_a_checkpoint_of_before_with_random_states_and_no_digests_still_loads(saved, engine):
    to_schema_1(newest(saved))
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 4
    other = engine_of(seed=9)
    assert restore(ref, engine=other) == Progress(
        step=4, cursors={"red": 4}, recipe_json="{}", run_id="r"
    )
    assert bits(other) == bits(engine)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_a_checkpoint_holds_no_pickle(saved):
    names = {path.name for path in newest(saved).iterdir()}
    assert names == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_one_before_is_used(saved, caplog, name):
    (newest(saved) / name).unlink()
    with caplog.at_level(logging.WARNING):
        ref = latest(saved)
    assert ref is not None
    assert ref.step == 2
    assert name in caplog.text
    assert "step-000000004" in caplog.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_changed_byte_is_named_and_the_one_before_is_used(saved, caplog, name, place):
    path = newest(saved) / name
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 2
    assert str(path) in caplog.text


def test_a_cut_file_and_a_longer_one_are_refused_by_name(saved):
    ref = latest(saved)
    assert ref is not None
    path = newest(saved) / FILES[-1]
    data = path.read_bytes()
    for other in (data[:-1], data + b"\0"):
        path.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"weights-00000-00000.safetensors has changed"):
            restore(ref, engine=engine_of())


def test_when_all_are_damaged_none_is_used_and_no_run_begins_anew_beside_them(saved):
    for path in saved.glob("*/part-00000.json"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be used; .*part-00000.json"
    ):
        latest(saved)


@pytest.mark.parametrize("files_written", range(3))
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(
    saved, engine, monkeypatch, files_written
):
    put, left = checkpoint.put, [files_written]

    def dying_put(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return put(*arguments)

    monkeypatch.setattr(checkpoint, "put", dying_put)
    with pytest.raises(KeyboardInterrupt):
        save(saved, engine=engine, progress=Progress(step=6), keep=1)
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 4
    monkeypatch.undo()
    assert save(saved, engine=engine, progress=Progress(step=6)).uri.endswith("step-000000006-1")
    assert latest(saved) is not None
    assert latest(saved).step == 6


def test_a_full_disk_is_an_error_of_the_user_and_publishes_nothing(tmp_path, engine, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "put", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, engine=engine, progress=Progress(step=1))
    assert latest(tmp_path) is None


def test_the_newest_are_kept_and_torn_ones_before_them_go(saved, engine):
    (saved / "step-000000003").mkdir()
    (saved / "step-000000003" / "part-00000.json").write_text("{}")
    save(saved, engine=engine, progress=Progress(step=6), keep=2)
    assert sorted(path.name for path in saved.iterdir()) == ["step-000000004", "step-000000006"]


def test_what_was_passed_over_does_not_push_out_what_was_saved_since(saved, engine, caplog):
    (newest(saved) / "weights-00000-00000.safetensors").unlink()
    assert latest(saved).step == 2
    ref = save(saved, engine=engine, progress=Progress(step=3), keep=1)
    assert [path.name for path in saved.iterdir()] == ["step-000000003"]
    assert latest(saved) == ref
    assert "removing" in caplog.text
    assert "step-000000004" in caplog.text


def test_a_second_save_of_a_step_is_newer_and_leaves_the_first_alone(saved, engine):
    first = latest(saved)
    second = save(saved, engine=engine, progress=Progress(step=4, run_id="again"))
    assert first is not None
    assert list(checkpoint.states(first))  # each file is checked as it is read
    assert latest(saved) == second
    assert read_progress(second).run_id == "again"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "weights-00000-00000.pt", ""])
def test_a_manifest_that_names_other_files_is_refused(saved, caplog, name):
    path = newest(saved) / "manifest.json"
    body = json.loads(path.read_bytes())["body"]
    body["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    path.write_bytes(to_manifest(body))
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 2
    assert "which no checkpoint holds" in caplog.text


def test_a_manifest_of_another_schema_or_size_is_refused(saved, caplog, monkeypatch):
    path = newest(saved) / "manifest.json"
    body = json.loads(path.read_bytes())["body"]
    path.write_bytes(to_manifest(body | {"schema": 99}))
    assert latest(saved).step == 2
    assert "has schema 99, this is 2" in caplog.text
    monkeypatch.setattr(checkpoint_files, "MAX_JSON_BYTES", 10)
    with pytest.raises(CheckpointError, match="can be used"):
        latest(saved)


def test_a_changed_manifest_is_not_the_one_that_was_opened(saved, engine):
    ref = latest(saved)
    assert ref is not None
    path = newest(saved) / "manifest.json"
    body = json.loads(path.read_bytes())["body"]
    body["progress"]["run_id"] = "another"
    path.write_bytes(to_manifest(body))
    with pytest.raises(CheckpointError, match="changed since"):
        restore(ref, engine=engine)


def test_large_parts_are_cut_into_files(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 500)
    train(engine, first=0, last=2)
    ref = save(tmp_path, engine=engine, progress=Progress(step=2))
    assert len(list(tmp_path.glob("*/weights-*"))) > 5
    other = engine_of(seed=3)
    restore(ref, engine=other)
    assert bits(other) == bits(engine)


def test_a_folder_may_be_on_any_file_system_of_fsspec(engine):
    folder = "memory://checkpoints"
    save(folder, engine=engine, progress=Progress(step=1))
    save(folder, engine=engine, progress=Progress(step=2), keep=1)
    ref = latest(folder)
    assert ref is not None
    assert ref.step == 2
    other = engine_of(seed=3)
    assert restore(ref, engine=other).step == 2
    assert bits(other) == bits(engine)
