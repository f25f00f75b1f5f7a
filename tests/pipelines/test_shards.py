import json

import numpy as np
import pytest

from pipelines.errors import CorpusError
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
        assert reader.held_bytes <= 500
        assert reader.num_open_files <= 2


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
    with pytest.raises(CorpusError, match="cannot be read: task: Field required; run") as caught:
        open_manifest(manifest.folder)
    assert "\n" not in str(caught.value)
    path.write_text("{" * 5_000)
    with pytest.raises(CorpusError, match=r"cannot be read: Invalid JSON") as caught:
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
