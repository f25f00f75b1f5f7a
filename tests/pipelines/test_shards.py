import errno
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import files
from pipelines.errors import CorpusError
from pipelines.files import FileReadError
from pipelines.shards import (
    COMPLETED,
    MANIFEST,
    Manifest,
    ShardReader,
    open_manifest,
    open_task,
    verify,
)
from tests.pipelines.toy_corpus import build_toy, toy_task

LENGTHS = [1 + (5 * i) % 11 for i in range(40)]


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return build_toy(tmp_path, lengths=LENGTHS, bucket_bounds=(4, 8))


def reader_rows(manifest: Manifest, **settings: int) -> list[list[int]]:
    reader = ShardReader([manifest], **settings)
    rows = np.arange(manifest.num_examples)
    return [example.inputs.tolist() for example in reader.read("copy", rows=rows)]


def test_row_group_holds_rows_of_one_length_bucket(manifest):
    rows = reader_rows(manifest)
    starts = manifest.group_starts.tolist()
    assert manifest.bucket_bounds == (4, 8, 13)  # 13: what is longer than the last bound
    for group, bucket in enumerate(manifest.group_buckets.tolist()):
        lengths = [len(row) for row in rows[starts[group] : starts[group + 1]]]
        low, high = [(0, 4), (4, 8), (8, 13)][bucket]
        assert all(low < length <= high for length in lengths)


def test_every_example_is_there_once_however_little_is_kept(manifest):
    rows = reader_rows(manifest)
    assert sorted(len(row) for row in rows) == sorted(
        length + 2 for length in LENGTHS
    )  # blank, end
    assert reader_rows(manifest, cache_bytes=1, open_files=1) == rows


def test_reader_keeps_within_its_bound(manifest):
    reader = ShardReader([manifest], cache_bytes=500, open_files=2)
    for row in range(manifest.num_examples):
        reader.read("copy", rows=np.array([row]))
        assert reader._held_bytes <= 500
        assert len(reader._files) <= 2


def test_manifest_survives_json(manifest):
    text = manifest.model_dump_json()
    assert "folder" not in json.loads(text)
    again = Manifest.model_validate_json(text)
    assert again.model_copy(update={"folder": manifest.folder}) == manifest


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"is not built; run `python -m pipelines build`"):
        open_manifest(tmp_path / "nowhere")


def test_folder_without_completed_is_refused(manifest):
    (manifest.folder / COMPLETED).unlink()
    with pytest.raises(CorpusError, match="half-built"):
        open_manifest(manifest.folder)


def test_changed_manifest_is_refused(manifest):
    path = manifest.folder / MANIFEST
    path.write_text(path.read_text().replace(manifest.shards[0].digest, "0" * 64))
    with pytest.raises(CorpusError, match="changed since it was built"):
        open_manifest(manifest.folder)
    path.write_text("{}")
    with pytest.raises(CorpusError, match="is damaged: task: Field required; run") as caught:
        open_manifest(manifest.folder)
    assert "\n" not in str(caught.value)
    path.write_text("{" * 5_000)
    with pytest.raises(CorpusError, match=r"is damaged: Invalid JSON") as caught:
        open_manifest(manifest.folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_or_shorter_shard_is_refused_by_name(manifest):
    path = manifest.folder / manifest.shards[1].file
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorpusError, match=r"shard-00001.parquet has \d+ bytes, built \d+"):
        open_manifest(manifest.folder)
    path.unlink()
    with pytest.raises(CorpusError, match=r"shard-00001.parquet is missing"):
        open_manifest(manifest.folder)


def test_one_changed_byte_is_found_when_read_or_changes_nothing(manifest):
    rows = reader_rows(manifest)
    path = manifest.folder / manifest.shards[0].file
    data = path.read_bytes()
    messages = []
    for place in range(4, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert reader_rows(manifest) == rows
        except CorpusError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(f"{path} changed since it was built" in message for message in messages)


def test_one_changed_byte_is_found_by_verify(manifest):
    path = manifest.folder / manifest.shards[0].file
    data = path.read_bytes()
    path.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    with pytest.raises(CorpusError, match=r"shard-00000.parquet changed .* delete"):
        verify(open_manifest(manifest.folder))


def test_task_with_other_features_is_refused_and_with_another_batch_size_is_not(manifest, tmp_path):
    task = toy_task(bucket_bounds=(4, 8), batch_size=12)
    opened = open_task(task, split="train", data_dir=tmp_path)
    assert opened.task.batch_size == 12
    with pytest.raises(CorpusError, match=r"was built with bucket_bounds \(4, 8\)"):
        open_task(toy_task(), split="train", data_dir=tmp_path)


# ---- what cannot be read is not said to have changed


def failing_reads(monkeypatch, *, times):
    """Row groups cannot be read so many times; the waits between tries."""
    waits, left = [], [times]
    whole = pq.ParquetFile.read_row_group

    def read_row_group(self, *arguments, **settings):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Error reading bytes from file")
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


def test_a_disk_that_does_not_answer_is_no_fault_of_the_corpus(manifest, monkeypatch):
    waits = failing_reads(monkeypatch, times=99)
    with pytest.raises(FileReadError) as caught:
        reader_rows(manifest)
    message = str(caught.value)
    assert str(manifest.folder / "shard-0000") in message
    assert "cannot be read: Input/output error (EIO)" in message
    assert "not known to be at fault" in message
    assert "delete" not in message
    assert "changed" not in message
    assert waits == [0.1, 0.4]


def test_a_disk_that_answers_at_the_third_try_gives_the_rows(manifest, monkeypatch):
    rows = reader_rows(manifest)
    waits = failing_reads(monkeypatch, times=2)
    assert reader_rows(manifest) == rows
    assert waits == [0.1, 0.4]


@pytest.mark.parametrize("place", ["directory", "loop"])
@pytest.mark.parametrize("act", [reader_rows, verify, lambda m: open_manifest(m.folder)])
def test_something_else_in_place_of_a_shard_is_named_and_nothing_is_to_be_deleted(
    manifest, place, act
):
    path = manifest.folder / manifest.shards[0].file
    path.unlink()
    if place == "directory":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(FileReadError, match=r"shard-00000.parquet cannot be read: ") as caught:
        act(manifest)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("name", [MANIFEST, COMPLETED])
def test_a_directory_in_place_of_what_describes_a_split_is_named(manifest, name):
    (manifest.folder / name).unlink()
    (manifest.folder / name).mkdir()
    with pytest.raises(FileReadError, match=rf"{name} cannot be read: Is a directory \(EISDIR\)"):
        open_manifest(manifest.folder)


@pytest.mark.parametrize("size", [0, 5])
def test_a_shard_cut_short_after_it_was_opened_has_changed(manifest, size):
    path = manifest.folder / manifest.shards[0].file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorpusError, match="changed since it was built"):
        reader_rows(manifest)


def test_a_shard_that_is_gone_is_missing(manifest):
    (manifest.folder / manifest.shards[0].file).unlink()
    with pytest.raises(CorpusError, match=r"shard-00000.parquet is missing; run"):
        reader_rows(manifest)
