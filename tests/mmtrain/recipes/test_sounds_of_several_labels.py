"""Sounds with several labels, from recordings to answers: one scale for all that read them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain.bundle import bundle_task, load_bundle, save_bundle
from mmtrain.evaluate.evaluate import evaluate
from mmtrain.losses import load_loss
from mmtrain.losses.mixup import mix_inputs, mixed_loss
from mmtrain.modalities import audio_patches
from mmtrain.models import polyvit
from mmtrain.models.model import ModelConfig, TaskSpec, build_model
from mmtrain.predict.batch import tasks_for
from mmtrain.predict.bulk_answers import BatchJob, answer_rows
from mmtrain.predict.bulk_inputs import open_input, parts, read_rows
from mmtrain.predict.bulk_output import Request
from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import encode_value
from mmtrain.serving.config import Limits
from mmtrain.serving.inputs import read_input
from pipelines.modalities.audio import AudioFeature
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest, ShardReader, open_task, shard_folder
from pipelines.stream import read_batches
from pipelines.tasks import polyvit_nine
from tests.mmtrain.example_polyvit import LINEAGE
from tests.pipelines.tone_corpus import TONES, TONES_HZ, build_here, chord, write_tones

SPEC = TaskSpec(
    name="tones",
    input_net="audio_patches",
    output_net="linear",
    num_outputs=3,
    loss="sigmoid_cross_entropy",
)
CONFIG = ModelConfig(
    family="polyvit",
    body=polyvit.Config(model_dim=24, num_layers=2, num_heads=2, mlp_dim=48),
    nets={"audio_patches": audio_patches.Config(num_frames=32, num_bins=16, patch=(8, 8))},
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tones(folder, sizes={"train": 96, "validation": 8, "test": 40})
    build_here(TONES, data_dir=folder, files_per_shard=32)
    return folder


@pytest.fixture(scope="module")
def predictor(data_dir, tmp_path_factory) -> Predictor:
    """Trained for 150 steps of 8 clips, by what a run does to a batch."""
    manifest = open_task(TONES, split="train", data_dir=data_dir)
    plan = Plan({"tones": manifest}, ScheduleConfig(), num_steps=150, examples="augmented")
    model = build_model(CONFIG, [SPEC], seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in read_batches(plan):
        tensors = {
            "inputs": torch.from_numpy(batch.inputs),
            "input_lengths": torch.from_numpy(batch.input_lengths),
            "targets": torch.from_numpy(batch.targets),
        }
        mix = mix_inputs(tensors, alpha=TONES.mixup, key=(0, batch.step, "tones"))
        logits = model(task="tones", **mix.tensors).logits
        loss = mixed_loss(lambda targets, of=logits: load_loss(SPEC.loss)(of, targets), mix)
        (loss.total / loss.count).backward()
        adam.step()
        adam.zero_grad()
    folder = save_bundle(
        tmp_path_factory.mktemp("run") / "bundle",
        model=CONFIG,
        tasks={"tones": bundle_task(manifest.task, spec=SPEC)},
        state=model.state_dict(),
        vocabulary=None,
        lineage=LINEAGE,
    )
    return Predictor(load_bundle(folder), device="cpu")


def built(data_dir: Path, *, split: str = "test") -> tuple[Manifest, list[np.ndarray]]:
    manifest = open_task(TONES, split="test", data_dir=data_dir)
    rows = np.arange(manifest.num_examples)
    return manifest, [e.inputs for e in ShardReader([manifest]).read("tones", rows=rows)]


def test_average_precision_is_far_above_the_frequency_of_the_labels(data_dir, predictor):
    result = evaluate(predictor, data_dir=data_dir).tasks["tones"]
    scores = {score.metric: score for score in result.splits[0].scores}
    average = scores["mean_average_precision"]
    assert average.baseline == pytest.approx(50, abs=12)  # of tones that half of the clips have
    assert average.value > average.baseline + 25, average
    assert scores["f1"].value > scores["f1"].baseline


def test_a_recording_is_answered_with_all_of_its_labels(predictor):
    data = chord(["low", "high"], rng=np.random.default_rng(5))
    (answer,) = predictor.predict("tones", [data])
    assert set(answer.scores) == set(TONES_HZ)
    assert answer.labels == ("low", "high")
    assert answer.text == "low, high"


def test_recordings_are_standard_as_the_corpus_was_whoever_reads_them(data_dir, predictor):
    _, stored = built(data_dir)
    feature = predictor.task("tones").inputs
    for number, array in enumerate(stored):
        file = data_dir / "raw" / "tones" / "test" / f"{number}.wav"
        served = read_input(file.read_bytes(), feature=feature, vocabulary=None, limits=Limits())
        _, read = encode_value(file, task=predictor.task("tones"), vocabulary=None)
        assert np.array_equal(read, array)
        assert np.array_equal(served, array)


def test_a_corpus_measured_anew_is_read_as_the_model_was_trained(data_dir, predictor, tmp_path):
    write_tones(tmp_path, sizes={"test": 40})
    write_tones(tmp_path, sizes={"train": 12, "validation": 4}, seed=9)  # other constants
    other = build_here(TONES, data_dir=tmp_path)["test"]
    ours, theirs = other.task.inputs, predictor.task("tones").inputs
    assert isinstance(ours, AudioFeature)
    assert isinstance(theirs, AudioFeature)
    assert ours.measured != theirs.measured

    before = evaluate(predictor, data_dir=data_dir).tasks["tones"].splits[0].scores[0].value
    after = evaluate(predictor, data_dir=tmp_path).tasks["tones"].splits[0].scores[0].value
    assert after == before

    data = open_input(str(shard_folder(tmp_path, task="tones", split="test")))
    assert tasks_for(data, predictor.tasks, task=None, modality=None) == ("tones",)
    request = Request(
        model="", input="", column="", tasks=("tones",), beam_size=1, rows_a_part=100,
        format="jsonl", model_uri="", input_uri="",
    )  # fmt: skip
    job = BatchJob(tmp_path, data, tmp_path, request, batch_size=8)
    (part,) = parts(data, rows_a_part=100)
    answers = answer_rows(predictor, job, list(read_rows(data, part)), part=part)
    files = [tmp_path / "raw" / "tones" / "test" / f"{number}.wav" for number in range(40)]
    said = predictor.predict("tones", files, batch_size=40)
    assert [row[0].answer for row in answers] == said


def test_both_published_tasks_of_sounds_are_measured_by_average_precision():
    assert polyvit_nine.AUDIOSET.metrics[0] == "mean_average_precision"
    assert "mean_average_precision" in polyvit_nine.VGGSOUND.metrics
