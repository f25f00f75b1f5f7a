"""Mean and deviation of sounds, measured by `build` on the training split."""

import shutil

import numpy as np
import pytest

from pipelines.build import is_fresh, load_maker, plan_split
from pipelines.errors import BuildError, CorpusError
from pipelines.layout import BuildConfig, ShardLayout
from pipelines.modalities import audio
from pipelines.modalities.audio import AudioFeature
from pipelines.narrow import narrow_split
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest, ShardReader, open_task
from pipelines.stream import read_batches
from pipelines.tasks import load_task, polyvit_nine
from tests.pipelines.tone_corpus import RATE_HZ, SPLITS, TONES, build_here, write_tones

SIZES = dict(zip(SPLITS, (11, 5, 6), strict=True))


def inputs_of(manifest: Manifest) -> list[np.ndarray]:
    rows = np.arange(manifest.num_examples)
    return [
        example.inputs for example in ShardReader([manifest]).read(manifest.task.name, rows=rows)
    ]


def measured(manifest: Manifest) -> tuple[float, float]:
    inputs = manifest.task.inputs
    assert isinstance(inputs, AudioFeature)
    assert inputs.measured is not None
    return inputs.measured


def raw_energies(data_dir, split) -> np.ndarray:
    """All log-mel energies of a split's recordings, one after another."""
    files = sorted((data_dir / "raw" / "tones" / split).glob("*.wav"))
    feature = AudioFeature(
        representation="log_mel", sample_rate_hz=RATE_HZ, num_bins=16, standard="corpus"
    )
    clips = [audio.encode(file.read_bytes(), feature=feature, vocabulary=None) for file in files]
    return np.concatenate(clips).astype(np.float64)


def test_all_splits_have_mean_and_deviation_of_the_training_split(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    manifests = build_here(TONES, data_dir=tmp_path)
    energies = raw_energies(tmp_path, "train")
    for split in SPLITS:
        mean, deviation = measured(manifests[split])
        assert mean == pytest.approx(energies.mean(), abs=1e-4)
        assert deviation == pytest.approx(energies.std(), abs=1e-4)


def test_training_examples_are_standard_and_filled_up_with_the_mean(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    manifests = build_here(TONES, data_dir=tmp_path)
    clips = inputs_of(manifests["train"])
    assert {(clip.shape, clip.dtype) for clip in clips} == {((32, 16), np.dtype(np.float32))}
    real = np.concatenate([clip[np.abs(clip).max(axis=1) > 0] for clip in clips])
    assert len(real) < 32 * len(clips)  # the rest is filled up
    assert abs(real.mean()) < 1e-4
    assert abs(real.std() - 1) < 1e-4
    assert manifests["train"].stats["longest_input"] == 32


def test_neither_shards_nor_the_order_of_the_work_change_a_bit(tmp_path):
    found = []
    for place, (rows, order) in enumerate([(4, 1), (4, -1), (3, 1), (100, 1)]):
        data_dir = tmp_path / str(place)
        write_tones(data_dir, sizes=SIZES)
        manifests = build_here(TONES, data_dir=data_dir, files_per_shard=rows, order=order)
        found.append((measured(manifests["train"]), measured(manifests["test"])))
    assert len(set(found)) == 1


def test_other_training_sounds_make_the_other_splits_stale(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    before = build_here(TONES, data_dir=tmp_path)
    write_tones(tmp_path, sizes={"train": 11}, seed=7)
    config = BuildConfig(layout=ShardLayout(row_group_rows=4, files_per_shard=4))
    job = plan_split(TONES, "test", data_dir=tmp_path, vocabulary=None, config=config)
    assert not is_fresh(job)
    after = build_here(TONES, data_dir=tmp_path)
    assert measured(after["test"]) == measured(after["train"]) != measured(before["train"])
    assert is_fresh(job)


def test_a_training_split_that_fails_leaves_the_others_as_they_were(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    before = build_here(TONES, data_dir=tmp_path)
    for file in (tmp_path / "raw" / "tones" / "train").glob("*.wav"):
        file.write_bytes(b"RIFF")
    with pytest.raises(BuildError, match="tones train: 11 of 11 records are bad"):
        build_here(TONES, data_dir=tmp_path)
    assert open_task(TONES, split="test", data_dir=tmp_path).task == before["test"].task


def test_silence_alone_is_refused_in_a_line(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    for file in (tmp_path / "raw" / "tones" / "train").glob("*.wav"):
        file.write_bytes(audio.to_wav(np.zeros(4_000), rate_hz=8_000))
    with pytest.raises(
        BuildError, match=r"tones train: every value .* is -11\.51.*inputs\.standard"
    ):
        build_here(TONES, data_dir=tmp_path)


def test_a_task_without_a_training_split_is_refused(tmp_path):
    source = TONES.source.model_copy(update={"splits": ("test",)})
    with pytest.raises(BuildError, match=r"standard='corpus' measures the split 'train'"):
        build_here(TONES.model_copy(update={"source": source}), data_dir=tmp_path)


def test_a_run_reads_what_was_measured_and_masks_with_the_mean(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    built = build_here(TONES, data_dir=tmp_path)["train"]
    opened = open_task(TONES, split="train", data_dir=tmp_path)
    assert opened.task == built.task
    plan = Plan({"tones": opened}, ScheduleConfig(), num_steps=1, examples="augmented")
    (batch,) = read_batches(plan)
    plain = dict(enumerate(inputs_of(opened)))
    changed = [
        (array, plain[number])
        for array, number in zip(batch.inputs, batch.example_ids.tolist(), strict=True)
        if not np.array_equal(array, plain[number])
    ]
    assert changed
    assert all((array[array != other] == 0).all() for array, other in changed)


def test_a_split_built_with_given_numbers_is_not_that_of_the_corpus(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    build_here(TONES, data_dir=tmp_path)
    given = TONES.inputs.model_copy(update={"standard": (-3.0, 2.0)})
    with pytest.raises(CorpusError, match="was built with inputs"):
        open_task(TONES.model_copy(update={"inputs": given}), split="train", data_dir=tmp_path)


def test_fewer_classes_leave_the_sounds_as_they_are(tmp_path):
    write_tones(tmp_path, sizes=SIZES)
    split = build_here(TONES, data_dir=tmp_path)["test"]
    narrowed = narrow_split(split, classes=(2, 0), data_dir=tmp_path / "small")
    for old, new in zip(inputs_of(split), inputs_of(narrowed), strict=True):
        np.testing.assert_array_equal(old, new)


def test_clips_of_the_shipped_maker_are_standard_as_published_tasks_read_them(tmp_path):
    load_maker("spoken_digits").make(tmp_path / "raw" / "spoken_digits", seed=0)
    task = load_task("speaking_voice").model_copy(update={"inputs": polyvit_nine.SOUND})
    manifests = build_here(task, data_dir=tmp_path, files_per_shard=64)
    shutil.rmtree(tmp_path / "raw")
    mean, deviation = measured(manifests["train"])
    assert -5.5 < mean < -3.0  # log(1e-5 + power); 1.102 and 2.762 are of another scale
    assert 1.3 < deviation < 2.5
    for split, bound in zip(SPLITS, (0.001, 0.15, 0.15), strict=True):
        clips = inputs_of(manifests[split])
        real = np.concatenate([clip[np.abs(clip).max(axis=1) > 0] for clip in clips])
        assert abs(real.mean()) < bound
        assert abs(real.std() - 1) < bound
        assert len(real) < 0.2 * 800 * len(clips)  # of 8 s; the rest is filled up
