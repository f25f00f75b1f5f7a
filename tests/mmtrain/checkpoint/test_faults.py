"""Checkpoints on disks that fail, and manifests that lie: the one before is used."""

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load as load_file
from safetensors.torch import save as save_file

from mmtrain.checkpoint import CheckpointError, Progress, latest, restore, save
from mmtrain.checkpoint.files import file_facts
from mmtrain.checkpoint.manifest import to_manifest
from mmtrain.engines import EngineConfig, EngineError, build_engine
from pipelines import files
from tests.mmtrain.engines.toy import SGD, ToyModel, toy_model, train
from tests.mmtrain.small_disk import free_bytes, small_disk

WEIGHTS = "weights-00000-00000.safetensors"
__all__ = ["small_disk"]  # a fixture
NAMES = ("manifest.json", "part-00000.json", WEIGHTS)


def engine_of(model=None):
    return build_engine(EngineConfig(name="torch"), model=model or toy_model(0), optimizer=SGD)


@pytest.fixture
def engine():
    return engine_of()


@pytest.fixture
def saved(tmp_path, engine):
    """A folder with checkpoints of steps 2 and 4."""
    for step in (2, 4):
        train(engine, first=step - 2, last=step)
        save(tmp_path, engine=engine, progress=Progress(step=step))
    return tmp_path


@pytest.fixture
def newest(saved):
    return saved / "step-000000004"


def assert_passed_over(saved, caplog, *reasons):
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 2
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "step-000000004 is passed over" in message
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


# ---- reading


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_in_place_of_a_file_is_named_and_the_one_before_is_used(
    saved, newest, caplog, name
):
    (newest / name).unlink()
    (newest / name).mkdir()
    assert_passed_over(saved, caplog, f"{newest / name} cannot be read: it is no file but a dir")


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_of_links_in_place_of_a_file_is_named_and_the_one_before_is_used(
    saved, newest, caplog, name
):
    (newest / name).unlink()
    (newest / name).symlink_to(newest / name)
    assert_passed_over(saved, caplog, f"{newest / name}", "symbolic links (ELOOP)")


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(saved, newest, caplog):
    (newest / WEIGHTS).unlink()
    os.mkfifo(newest / WEIGHTS)
    assert_passed_over(saved, caplog, f"{newest / WEIGHTS} cannot be read: it is no file")


def failing_reads(monkeypatch, *, path, times):
    """Reads of one file fail with EIO, so many times; the tries are counted, no time is waited."""
    waits, tries = [], []
    whole = LocalFileSystem.cat_file

    def cat_file(self, name, *arguments, **settings):
        if name == str(path):
            tries.append(name)
            if len(tries) <= times:
                raise OSError(errno.EIO, "Input/output error")
        return whole(self, name, *arguments, **settings)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return tries, waits


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_does_not_answer_is_tried_three_times_then_the_one_before_is_used(
    saved, newest, caplog, monkeypatch, name
):
    tries, waits = failing_reads(monkeypatch, path=newest / name, times=99)
    assert_passed_over(saved, caplog, f"{newest / name} cannot be read: Input/output error (EIO)")
    assert len(tries) == 3
    assert waits == [0.1, 0.4]


def test_a_disk_that_answers_at_the_third_try_is_taken(saved, newest, caplog, monkeypatch):
    tries, _ = failing_reads(monkeypatch, path=newest / WEIGHTS, times=2)
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 4
    assert len(tries) == 3
    assert not caplog.records


def test_a_restore_that_cannot_read_says_file_and_cause(saved, newest, engine, monkeypatch):
    ref = latest(saved)
    assert ref is not None
    failing_reads(monkeypatch, path=newest / WEIGHTS, times=99)
    with pytest.raises(CheckpointError, match=rf"step 4.*{WEIGHTS} cannot be read: .*\(EIO\)"):
        restore(ref, engine=engine)


def test_no_file_is_read_twice_to_find_a_checkpoint(saved, newest, monkeypatch):
    tries = {}
    whole = LocalFileSystem.cat_file

    def cat_file(self, name, *arguments, **settings):
        tries[Path(name).name] = tries.get(Path(name).name, 0) + 1
        return whole(self, name, *arguments, **settings)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    latest(saved)
    assert tries == dict.fromkeys(NAMES, 1)


# ---- manifests with a right digest


def body_of(folder):
    return json.loads((folder / "manifest.json").read_bytes())["body"]


def write_body(folder, body):
    (folder / "manifest.json").write_bytes(to_manifest(body))


@pytest.mark.parametrize("key", ["schema", "world_size", "progress", "files", "tensors"])
def test_a_manifest_without_a_key_is_passed_over(saved, newest, caplog, key):
    body = body_of(newest)
    del body[key]
    write_body(newest, body)
    assert_passed_over(saved, caplog, "manifest.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", None),
        ("step", "4"),
        ("step", True),
        ("cursors", ["red"]),
        ("cursors", {"red": "3"}),
        ("unheard", 1),
    ],
)
def test_a_manifest_with_another_kind_of_value_is_passed_over(saved, newest, caplog, key, value):
    body = body_of(newest)
    body["progress"][key] = value
    write_body(newest, body)
    assert_passed_over(saved, caplog, f"progress.{key}")


def test_a_manifest_that_omits_a_file_of_weights_is_passed_over(saved, newest, caplog):
    body = body_of(newest)
    del body["files"][WEIGHTS]
    write_body(newest, body)
    assert_passed_over(saved, caplog, WEIGHTS)


def test_a_manifest_and_index_that_omit_the_last_of_several_files_are_passed_over(
    tmp_path, engine, caplog, monkeypatch
):
    monkeypatch.setattr("mmtrain.checkpoint.SHARD_BYTES", 500)
    for step in (2, 4):
        save(tmp_path, engine=engine, progress=Progress(step=step))
    folder = tmp_path / "step-000000004"
    body = body_of(folder)
    last = max(name for name in body["files"] if name.startswith("weights"))
    index = json.loads((folder / "part-00000.json").read_bytes())
    del body["files"][last], index["files"][last]
    data = json.dumps(index).encode()
    (folder / "part-00000.json").write_bytes(data)
    body["files"]["part-00000.json"] = file_facts(data)
    write_body(folder, body)
    assert_passed_over(tmp_path, caplog, "tensors, manifest.json says")


def test_a_manifest_that_omits_a_file_between_others_names_it(
    tmp_path, engine, caplog, monkeypatch
):
    monkeypatch.setattr("mmtrain.checkpoint.SHARD_BYTES", 500)
    for step in (2, 4):
        save(tmp_path, engine=engine, progress=Progress(step=step))
    body = body_of(tmp_path / "step-000000004")
    del body["files"]["weights-00000-00001.safetensors"]
    write_body(tmp_path / "step-000000004", body)
    assert_passed_over(tmp_path, caplog, "weights-00000-00001.safetensors")


def replace_weights(folder, change, **said):
    """The file of weights with other contents, index and manifest made to fit."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = load_file(data)
    change(tensors)
    data = save_file(tensors, metadata=header["__metadata__"])
    path.write_bytes(data)
    index = {"files": {WEIGHTS: file_facts(data)}, "tensors": len(tensors)}
    part = json.dumps(index).encode()
    (folder / "part-00000.json").write_bytes(part)
    body = body_of(folder)
    body["files"] = {WEIGHTS: file_facts(data), "part-00000.json": file_facts(part)}
    write_body(folder, body | said)
    return len(tensors)


def test_a_file_that_lacks_a_tensor_is_passed_over(saved, newest, caplog):
    replace_weights(newest, lambda tensors: tensors.pop("stem.weight/weight"))
    assert_passed_over(saved, caplog, "tensors, manifest.json says")


def test_a_checkpoint_that_lacks_a_tensor_of_the_model_is_refused_by_its_name(saved, newest):
    count = len(load_file((newest / WEIGHTS).read_bytes()))
    replace_weights(newest, lambda tensors: tensors.pop("stem.weight/weight"), tensors=count - 1)
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 4  # whole in itself: what is wanted of it, the model alone knows
    with pytest.raises(EngineError, match=r"stem.weight"):
        restore(ref, engine=engine_of())


def test_a_checkpoint_renamed_to_a_later_step_is_not_taken_for_it(saved, newest, caplog):
    (saved / "step-000000002").rename(saved / "step-000000024")
    ref = latest(saved)
    assert ref is not None
    assert ref.step == 4
    assert "is of step 2, its folder's name says step 24" in caplog.text


def test_a_manifest_of_more_ranks_than_wrote_parts_is_passed_over(saved, newest, caplog):
    write_body(newest, body_of(newest) | {"world_size": 2})
    assert_passed_over(saved, caplog, "lists no part-00001.json")


@pytest.mark.parametrize("world_size", [0, -1, 10**12])
def test_a_manifest_of_no_number_of_ranks_is_passed_over(saved, newest, caplog, world_size):
    write_body(newest, body_of(newest) | {"world_size": world_size})
    assert_passed_over(saved, caplog, "world_size")


def test_a_manifest_nested_without_end_is_passed_over(saved, newest, caplog):
    (newest / "manifest.json").write_bytes(b"[" * 100_000)
    assert_passed_over(saved, caplog, "is damaged")


# ---- full disks


def wide_engine(width):
    return engine_of(ToyModel(width=width))


def test_a_full_disk_is_left_as_it_was_and_the_checkpoint_before_stands(small_disk):
    small, large = wide_engine(16), wide_engine(96)
    ref = save(small_disk, engine=small, progress=Progress(step=2))
    free = free_bytes(small_disk)
    before = sorted(small_disk.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        save(small_disk, engine=large, progress=Progress(step=4))
    message = str(caught.value)
    assert "No space left on device (ENOSPC)" in message
    told = re.search(r"needs ([\d,]+) bytes, in (\S+) ([\d,]+) bytes are free", message)
    assert told is not None
    needed, folder, left = told.groups()
    assert folder == f"{small_disk}/step-000000004"
    assert 0 < int(left.replace(",", "")) < int(needed.replace(",", ""))
    assert "\n" not in message
    assert sorted(small_disk.rglob("*")) == before
    assert free_bytes(small_disk) == free
    assert latest(small_disk) == ref


def test_a_file_that_does_not_fit_leaves_no_bytes_and_the_old_one(small_disk):
    path = small_disk / "state.json"
    files.write_whole(path, "{}")
    free = free_bytes(small_disk)
    with pytest.raises(files.FileWriteError, match=r"needs 1,000,000 bytes, in .* bytes are free"):
        files.write_whole(path, b"x" * 1_000_000)
    assert free_bytes(small_disk) == free
    assert [file.name for file in small_disk.iterdir()] == ["state.json"]
    assert path.read_text() == "{}"
