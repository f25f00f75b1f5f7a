"""Splits with fewer classes: the examples that stay, under new ids, where they came from."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.errors import CorpusError
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.narrow import narrow_split, narrowed_feature
from pipelines.shards import Example, ShardReader, open_manifest, shard_folder, verify
from tests.mmtrain.example_corpus import write_split
from tests.mmtrain.example_masked import SHADES, build_shades, picture


def examples(manifest) -> list[Example]:
    rows = np.arange(manifest.num_examples)
    return ShardReader([manifest]).read(manifest.task.name, rows=rows)


@pytest.fixture
def split(tmp_path):
    build_shades(tmp_path / "corpora")
    return open_manifest(shard_folder(tmp_path / "corpora", task="shades", split="test"))


def test_examples_of_the_classes_stay_under_their_new_ids(split, tmp_path):
    narrowed = narrow_split(split, classes=(1, 4), data_dir=tmp_path / "small")
    verify(narrowed)
    assert narrowed.task.targets == LabelFeature(classes=("dark", "white"))
    assert narrowed.num_examples == 8
    kept = [example for example in examples(split) if int(example.targets[0]) in (1, 4)]
    for old, new in zip(kept, examples(narrowed), strict=True):
        assert np.array_equal(old.inputs, new.inputs)
        assert int(new.targets[0]) == {1: 0, 4: 1}[int(old.targets[0])]


def test_origins_come_along(split, tmp_path):
    narrowed = narrow_split(split, classes=(0,), data_dir=tmp_path / "small")
    table = pq.read_table(narrowed.folder / narrowed.shards[0].file)
    assert table["origin"].to_pylist() == ["shades:0", "shades:5", "shades:10", "shades:15"]


def test_an_older_narrowed_split_is_replaced(split, tmp_path):
    narrow_split(split, classes=(0, 1, 2), data_dir=tmp_path / "small")
    assert narrow_split(split, classes=(0, 1), data_dir=tmp_path / "small").num_examples == 8


def test_several_labels_stay_with_every_example(tmp_path):
    targets = MultiLabelFeature(classes=("dark", "light", "grey"))
    task = SHADES.model_copy(update={"targets": targets, "loss": None})
    rows = [(picture(0)[0], "dark, grey"), (picture(1)[0], "light")]
    write_split(tmp_path, task, split="test", rows=rows, vocabulary=None)
    split = open_manifest(shard_folder(tmp_path, task="shades", split="test"))
    narrowed = narrow_split(split, classes=(2, 0), data_dir=tmp_path / "small")
    assert [example.targets.tolist() for example in examples(narrowed)] == [[1, 1], [0, 0]]


def test_a_split_without_the_classes_is_refused(split, tmp_path):
    rows = [picture(number) for number in (0, 1, 2)]
    write_split(tmp_path, SHADES, split="test", rows=rows, vocabulary=None)
    few = open_manifest(shard_folder(tmp_path, task="shades", split="test"))
    with pytest.raises(CorpusError, match="no example of classes light"):
        narrow_split(few, classes=(3,), data_dir=tmp_path / "small")


def test_texts_have_no_classes_to_leave_out():
    with pytest.raises(CorpusError, match="text targets have no classes"):
        narrowed_feature(TextFeature(max_tokens=4), classes=(0,))
