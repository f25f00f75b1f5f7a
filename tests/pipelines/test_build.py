import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest

from pipelines import build as build_module
from pipelines import modalities, readers, writer
from pipelines.build import (
    build_splits,
    is_fresh,
    plan_split,
    split_units,
)
from pipelines.errors import BuildError
from pipelines.fingerprint import code_digest, syntax
from pipelines.joint_vocabulary import joint_vocabulary
from pipelines.modalities import video
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.video import VideoFeature
from pipelines.seal import SplitJob, finish_split
from pipelines.shards import COMPLETED, QUARANTINE, open_manifest, shard_folder
from pipelines.task import Source, Task
from pipelines.writer import UnitReport, write_unit
from tests.pipelines.toy_corpus import build_toy, toy_config, toy_task, write_raw

LENGTHS = [3, 5, 2, 8, 3] * 10


@pytest.fixture
def no_ray(monkeypatch):
    """Units are written here, one after the other."""
    monkeypatch.setattr(build_module, "run_units", lambda units: map(write_unit, units))


def job_of(data_dir, **fields) -> SplitJob:
    config, task = toy_config(), toy_task(**fields)
    vocabulary = joint_vocabulary([task], data_dir=data_dir, config=config)
    return plan_split(task, "train", data_dir=data_dir, vocabulary=vocabulary, config=config)


def reports_of(job: SplitJob, data_dir) -> list[UnitReport]:
    units = split_units(job, data_dir=data_dir, config=toy_config())
    return [write_unit(unit) for unit in units]


def run(job: SplitJob, data_dir, **config) -> None:
    settings = toy_config().model_copy(update=config)
    build_splits([job], data_dir=data_dir, config=settings, progress=None)


def test_split_is_cut_into_shards_in_the_order_of_its_rows(tmp_path):
    manifest = build_toy(tmp_path, lengths=LENGTHS)
    assert [shard.file for shard in manifest.shards] == [f"shard-{i:05d}.parquet" for i in range(4)]
    rows = [shard.num_rows for shard in manifest.shards]
    assert rows == [15, 16, 16, 3]  # the first of 16 lines is the header
    assert manifest.num_examples == 50
    assert manifest.stats["longest_input"] == 10  # a blank, eight digits and the end


def test_building_twice_gives_the_same_digest(tmp_path):
    first = build_toy(tmp_path / "a", lengths=LENGTHS)
    assert build_toy(tmp_path / "b", lengths=LENGTHS).digest == first.digest
    assert build_toy(tmp_path / "c", lengths=LENGTHS[1:]).digest != first.digest


def test_bad_records_are_set_aside_with_place_and_reason(tmp_path, no_ray):
    path = write_raw(tmp_path, lengths=[3] * 20)
    path.write_bytes(path.read_bytes() + b"caf\xe9\tx\none\n\tx\n" + b"1" * 70 + b"\tx\n")
    job = job_of(tmp_path)
    run(job, tmp_path, max_bad_share=0.2)
    manifest = open_manifest(job.folder)
    assert (manifest.num_examples, manifest.num_quarantined) == (20, 4)
    lines = [json.loads(line) for line in (job.folder / QUARANTINE).read_text().splitlines()]
    assert [line["origin"] for line in lines] == [f"part.tsv:{i}" for i in (22, 23, 24, 25)]
    reasons = [line["reason"] for line in lines]
    assert reasons[0].startswith("not UTF-8")
    assert reasons[1] == "1 columns, the header has 2"
    assert reasons[2].startswith("empty text")
    assert "71 tokens" in reasons[3]


def test_too_many_bad_records_fail_the_build_and_leave_nothing(tmp_path, no_ray):
    path = write_raw(tmp_path, lengths=[3] * 50)
    path.write_bytes(path.read_bytes() + b"caf\xe9\tx\n")
    job = job_of(tmp_path)
    with pytest.raises(BuildError, match=r"1 of 51 records are bad, 2.0%.*part.tsv:52 \(not UTF-8"):
        run(job, tmp_path)
    assert list(job.folder.parent.iterdir()) == []


@pytest.mark.parametrize("stage", ["plan", "first unit", "last unit", "seal", "rename"])
def test_failure_at_any_stage_leaves_no_completed_and_the_old_split_stands(
    tmp_path, monkeypatch, no_ray, stage
):
    write_raw(tmp_path, lengths=LENGTHS)
    old = job_of(tmp_path)
    run(old, tmp_path)
    digest = open_manifest(old.folder).digest
    write_raw(tmp_path, lengths=LENGTHS[1:])
    job = job_of(tmp_path)
    assert not is_fresh(job)
    break_at(stage, monkeypatch)
    with pytest.raises((RuntimeError, BuildError)):
        run(job, tmp_path)
    monkeypatch.undo()
    assert open_manifest(old.folder).digest == digest
    assert [path.name for path in old.folder.parent.iterdir()] == ["train"]


def break_at(stage: str, monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the power went")

    if stage == "plan":
        monkeypatch.setattr(readers, "pieces", fail)
    elif stage == "seal":
        monkeypatch.setattr("pipelines.seal.seal", fail)
    elif stage == "rename":
        monkeypatch.setattr(build_module.Path, "rename", fail)
    else:
        last = {"first unit": 0, "last unit": 3}[stage]
        monkeypatch.setattr(
            build_module,
            "run_units",
            lambda units: (fail() if u.number == last else write_unit(u) for u in units),
        )


def test_full_disk_is_one_clear_error(tmp_path, monkeypatch, no_ray):
    write_raw(tmp_path, lengths=LENGTHS)
    job = job_of(tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.writer.pq.ParquetWriter", full)
    with pytest.raises(BuildError, match="copy train: no space left on the disk of"):
        run(job, tmp_path)
    assert not shard_folder(tmp_path, task="copy", split="train").exists()


def test_one_split_that_fails_does_not_undo_another(tmp_path, no_ray):
    write_raw(tmp_path, name="good", lengths=LENGTHS)
    path = write_raw(tmp_path, name="bad", lengths=LENGTHS)
    path.write_bytes(path.read_bytes() + b"\xff\t\xff\n" * 9)
    good, bad = job_of(tmp_path, name="good"), job_of(tmp_path, name="bad")
    with pytest.raises(BuildError, match="bad train: 9 of 59"):
        build_splits([bad, good], data_dir=tmp_path, config=toy_config(), progress=None)
    assert open_manifest(good.folder).num_examples == 50
    assert not bad.folder.exists()


def test_split_is_fresh_until_a_file_a_feature_or_code_changes(tmp_path, monkeypatch, no_ray):
    path = write_raw(tmp_path, lengths=LENGTHS)
    job = job_of(tmp_path)
    assert not is_fresh(job)
    run(job, tmp_path)
    assert is_fresh(job_of(tmp_path))
    assert is_fresh(job_of(tmp_path, batch_size=12, loss_weight=2.0))
    assert not is_fresh(job_of(tmp_path, bucket_bounds=(4,)))
    code = modalities.load("text").__name__
    monkeypatch.setattr("pipelines.fingerprint._code_digest", lambda name: f"other {code}")
    assert not is_fresh(job_of(tmp_path))
    monkeypatch.undo()
    os.utime(path, (1, 1))
    assert not is_fresh(job_of(tmp_path))


def test_half_built_split_is_not_fresh(tmp_path, no_ray):
    write_raw(tmp_path, lengths=LENGTHS)
    job = job_of(tmp_path)
    run(job, tmp_path)
    (job.folder / COMPLETED).unlink()
    assert not is_fresh(job)


def test_code_counts_by_its_syntax():
    plain = syntax("def f(x):\n    return x + 1\n")
    assert syntax('"""About."""\n\ndef f(x):  # why\n    """Doc."""\n    return x  + 1') != plain
    assert syntax('def f(x):\n    """Doc."""\n    return x+1  # why\n') == syntax(
        'def f(x):\n    """Other."""\n\n    return x + 1\n'
    )
    assert syntax("def f(x):\n    return x + 2\n") != plain


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a syntax tree is its Python's")
def test_corpora_that_were_built_by_earlier_code_are_as_today_builds_them():
    """Whoever changes one of these makes users build again; see `fingerprint.SAME_BYTES`."""
    built = {
        "audio": "ab2e017857efdc7d", "image": "07b818a14b6c3aab", "label": "9f85ed0c48afbf30",
        "labels": "05307998ae7d8417", "mask": "dc84601758954c4c", "multilabel": "b690d21faa1dc142",
        "numbers": "824a71ae2a2d9162", "text": "27994bf75b36c3d9", "tree": "31fa2c15ad73df2c",
        "video": "b4e8fef02c212c8e",
    }  # fmt: skip
    assert {name: code_digest(modalities.load(name))[:16] for name in modalities.names()} == built
    assert code_digest(readers).startswith("3fdff28c35dd7d5b")
    assert code_digest(writer).startswith("d4273620f4a870cc")


def vocabulary_files(data_dir) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (data_dir / "vocabularies").iterdir()}


def test_vocabulary_stays_for_fewer_tasks_and_is_another_for_another_text(tmp_path):
    for name in ("a", "b"):
        write_raw(tmp_path, name=name, lengths=LENGTHS)
    tasks, config = [toy_task("a"), toy_task("b")], toy_config()
    both = joint_vocabulary(tasks, data_dir=tmp_path, config=config)
    written = vocabulary_files(tmp_path)
    assert joint_vocabulary(tasks[:1], data_dir=tmp_path, config=config) == both
    assert vocabulary_files(tmp_path) == written
    write_raw(tmp_path, name="a", lengths=[9] * 300)
    assert joint_vocabulary(tasks[:1], data_dir=tmp_path, config=config) != both
    assert vocabulary_files(tmp_path).items() > written.items()


def test_runs_with_other_text_tasks_leave_each_others_splits_fresh(tmp_path, no_ray):
    write_raw(tmp_path, name="a", lengths=LENGTHS)
    write_raw(tmp_path, name="b", lengths=[9] * 300)
    first = job_of(tmp_path, name="a")
    run(first, tmp_path)
    second = job_of(tmp_path, name="b")
    run(second, tmp_path)
    assert first.vocabulary_digest != second.vocabulary_digest
    assert is_fresh(job_of(tmp_path, name="a"))
    assert is_fresh(job_of(tmp_path, name="b"))


def test_tasks_without_text_train_and_touch_no_vocabulary(tmp_path, no_ray):
    task = shade_task()
    for name, shade in (("one", 10), ("two", 20)):
        folder = tmp_path / "raw" / "shades" / "train" / name
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(to_png(np.full((4, 4), shade, np.uint8)))
    config = toy_config()
    assert joint_vocabulary([task], data_dir=tmp_path, config=config) is None
    job = plan_split(task, "train", data_dir=tmp_path, vocabulary=None, config=config)
    run(job, tmp_path)
    manifest = open_manifest(job.folder)
    assert (manifest.num_examples, manifest.vocabulary_digest) == (2, None)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["raw", "shards"]

    write_raw(tmp_path, name="a", lengths=LENGTHS)  # text beside it changes nothing
    vocabulary = joint_vocabulary([task, toy_task("a")], data_dir=tmp_path, config=config)
    assert vocabulary is not None
    assert is_fresh(
        plan_split(task, "train", data_dir=tmp_path, vocabulary=vocabulary, config=config)
    )


def shade_task() -> Task:
    return Task(
        name="shade",
        source=Source(uri="raw/shades", format="image_folder", splits=("train",)),
        inputs=ImageFeature(height=4, width=4, channels=1),
        targets=LabelFeature(classes=("one", "two")),
        metrics=("accuracy",),
        baseline="majority_class",
        batch_size=2,
    )


def test_order_of_tasks_does_not_change_the_vocabulary(tmp_path):
    for name in ("a", "b"):
        for folder in ("one", "two"):
            write_raw(tmp_path / folder, name=name, lengths=LENGTHS)
    tasks, config = [toy_task("a"), toy_task("b")], toy_config()
    one = joint_vocabulary(tasks, data_dir=tmp_path / "one", config=config)
    two = joint_vocabulary(tasks[::-1], data_dir=tmp_path / "two", config=config)
    assert one is not None
    assert one == two


def test_finished_split_without_a_good_row_is_refused(tmp_path):
    write_raw(tmp_path, lengths=[70])
    job = job_of(tmp_path)
    (failure,) = finish_split(job, reports_of(job, tmp_path), max_bad_share=1.0)
    assert "1 of 1 records are bad" in failure


def test_progress_counts_the_shards_of_all_splits_of_a_task(tmp_path, no_ray):
    write_raw(tmp_path, lengths=LENGTHS)
    raw = tmp_path / "raw" / "copy"
    shutil.copytree(raw / "train", raw / "test")
    source = toy_task().source.model_copy(update={"splits": ("train", "test")})
    task, config = toy_task().model_copy(update={"source": source}), toy_config()
    vocabulary = joint_vocabulary([task], data_dir=tmp_path, config=config)
    jobs = [
        plan_split(task, split, data_dir=tmp_path, vocabulary=vocabulary, config=config)
        for split in source.splits
    ]
    told = []
    build_splits(jobs, data_dir=tmp_path, config=config, progress=lambda *fact: told.append(fact))
    assert told == [("copy", done, 8) for done in range(1, 9)]


def test_video_cut_half_way_is_quarantined_with_its_reason(tmp_path, no_ray):
    clip = VideoFeature(height=4, width=4, channels=1, num_frames=3, min_frames=2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    whole = video.decode(frames, feature=clip, vocabulary=None)
    short = video.decode(frames[:1], feature=clip, vocabulary=None)
    folder = tmp_path / "raw" / "shades" / "train" / "one"
    folder.mkdir(parents=True)
    for name, data in (("a", whole), ("b", whole[: len(whole) // 2]), ("c", short)):
        (folder / f"{name}.mp4").write_bytes(data)
    source = Source(uri="raw/shades", format="video_folder", splits=("train",))
    task, config = shade_task(), toy_config()
    task = task.model_copy(update={"source": source, "inputs": clip})
    job = plan_split(task, "train", data_dir=tmp_path, vocabulary=None, config=config)
    run(job, tmp_path, max_bad_share=0.7)
    assert open_manifest(job.folder).num_examples == 1
    lines = [json.loads(line) for line in (job.folder / QUARANTINE).read_text().splitlines()]
    assert [line["origin"] for line in lines] == ["one/b.mp4", "one/c.mp4"]
    assert lines[0]["reason"].startswith("unreadable video: ")
    assert lines[1]["reason"].startswith("clip too short: 1 frames")


def test_a_source_that_cannot_be_read_is_named_with_its_cause(tmp_path, monkeypatch, no_ray):
    path = write_raw(tmp_path, lengths=LENGTHS)
    job = job_of(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(readers, "_lines", fail)
    with pytest.raises(BuildError, match=rf"copy train: {path} cannot be read: Input/output"):
        run(job, tmp_path)


@pytest.mark.parametrize("left", ["", "{", "[1]", "\0\0"])
def test_a_damaged_record_of_a_vocabulary_is_named_with_a_remedy(tmp_path, left):
    write_raw(tmp_path, lengths=LENGTHS)
    vocabulary = joint_vocabulary([toy_task()], data_dir=tmp_path, config=toy_config())
    assert vocabulary is not None
    (record,) = tmp_path.glob("vocabularies/*.sources.json")
    record.write_text(left)
    with pytest.raises(BuildError, match=rf"{record} is damaged: .*; remove it and build again"):
        joint_vocabulary([toy_task()], data_dir=tmp_path, config=toy_config())
    record.unlink()
    again = joint_vocabulary([toy_task()], data_dir=tmp_path, config=toy_config())
    assert again == vocabulary
