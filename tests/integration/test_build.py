import pytest

from pipelines.build import build
from pipelines.errors import BuildError
from pipelines.shards import CorpusError, ShardReader, open_manifest
from tests.pipelines.toy_corpus import toy_config, toy_task, write_raw

LENGTHS = [3, 5, 2, 8, 3] * 10
TASKS = [toy_task("one"), toy_task("two", bucket_bounds=(4, 8))]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_build_of_two_tasks_then_a_rebuild_of_what_changed_alone(tmp_path):
    for task in TASKS:
        write_raw(tmp_path, name=task.name, lengths=LENGTHS)
    told: list[tuple[str, int, int]] = []
    first = build(
        TASKS, data_dir=tmp_path, config=toy_config(), progress=lambda *fact: told.append(fact)
    )
    assert {key: manifest.num_examples for key, manifest in first.items()} == {
        ("one", "train"): 50,
        ("two", "train"): 50,
    }
    assert sorted(told) == [(t, done, 4) for t in ("one", "two") for done in (1, 2, 3, 4)]

    told.clear()
    again = build(
        TASKS, data_dir=tmp_path, config=toy_config(), progress=lambda *fact: told.append(fact)
    )
    assert (again, told) == (first, [])

    (first["two", "train"].folder / "shard-00001.parquet").unlink()
    with pytest.raises(CorpusError, match=r"shard-00001\.parquet is missing"):
        open_manifest(first["two", "train"].folder)
    healed = build(
        TASKS, data_dir=tmp_path, config=toy_config(), progress=lambda *fact: told.append(fact)
    )
    assert {task for task, _, _ in told} == {"two"}
    assert healed == first


def test_rows_of_a_piece_keep_their_order_whichever_task_ends_first(tmp_path):
    write_raw(tmp_path, name="one", lengths=list(range(1, 41)))
    manifest = build(TASKS[:1], data_dir=tmp_path, config=toy_config())["one", "train"]
    examples = ShardReader([manifest]).read("one", rows=manifest.group_starts[:-1])
    lengths = [len(example.inputs) for example in examples]
    assert lengths == sorted(lengths)


def test_missing_source_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(BuildError, match=r"no \.tsv file below .*raw/one/train"):
        build(TASKS[:1], data_dir=tmp_path, config=toy_config())
    assert not (tmp_path / "shards").exists()
