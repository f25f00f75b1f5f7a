"""A user's own modality with its net, target, format, augmentation and schedule, from his files:
build, plan, train, measure, predict and serve, and no line of the packages knows of them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from mmtrain.derive.onnx_export import example_batch
from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.evaluate.evaluate import evaluate_model
from mmtrain.models import multimodel
from mmtrain.models.fitting import FittingError, check_nets
from mmtrain.models.model import ModelConfig
from mmtrain.planning.estimate import plan_run
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from mmtrain.run.task_steps import task_steps
from mmtrain.serving.networks import Network, Networks
from mmtrain.store.pyfunc_example import input_example
from pipelines import build as build_module
from pipelines.augment import check_augmentations
from pipelines.build import build
from pipelines.errors import AugmentationError, UnknownNameError
from pipelines.fingerprint import code_digest, own_format
from pipelines.modalities import load
from pipelines.modalities.label import LabelFeature
from pipelines.names import OwnCodeError
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig, run_steps
from pipelines.shards import open_manifest, shard_folder
from pipelines.stream import read_batches
from pipelines.task import Augmentation, Source, Task
from pipelines.writer import write_unit
from tests.mmtrain.example_run import train_here
from tests.mmtrain.example_server import example_app

TESTS = Path(__file__).parents[1]
CONTOURS, LETTERS = str(TESTS / "own_contours.py"), str(TESTS / "own_letters.py")
TREND = LabelFeature(classes=("up", "down"))


def task(name: str, targets: object, *, word: int) -> Task:
    source = Source(uri="raw/hills", format=f"{CONTOURS}:CONTOURS", options={"word": str(word)})
    return Task.model_validate(
        {
            "name": name, "source": source, "targets": targets, "batch_size": 4,
            "inputs": {"modality": CONTOURS, "max_points": 8}, "metrics": ("accuracy",),
            "baseline": "majority_class", "num_steps": 80,
            "augment": ({"name": f"{CONTOURS}:Tilt"},),
        }
    )  # fmt: skip


TASKS = (
    task("trend", TREND, word=0),
    task("grade", {"modality": LETTERS}, word=1),
    task("again", TREND, word=0),
)
RECIPE = Recipe(
    name="hills",
    tasks={one.name: one for one in TASKS},
    model=ModelConfig(
        body=multimodel.Config(
            model_dim=32, num_heads=2, encoder_conv_blocks=1, encoder_attention_blocks=1,
            mixer_blocks=1, decoder_blocks=1, experts="none", drop_prob=0.0, join="none",
        ),
        nets={CONTOURS: load(CONTOURS).Config(scale=2.0)},
    ),
    schedule=ScheduleConfig(name=f"{CONTOURS}:PAIRS"),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    engine=EngineConfig(name="torch"),
    num_steps=120,
)  # fmt: skip


def contour(trend: str, grade: str, *, rng: np.random.Generator) -> bytes:
    """From 0 to 1 or back, as many points as the grade says."""
    heights = np.linspace(0, 1, {"a": 3, "b": 5, "c": 8}[grade]) + rng.normal(0, 0.02)
    return load(CONTOURS).to_file(heights if trend == "up" else heights[::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `corpora` and a trained `run`."""
    folder = tmp_path_factory.mktemp("hills")
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        place = folder / "corpora" / "raw" / "hills" / split
        place.mkdir(parents=True)
        for number in range(24):
            trend, grade = ("up", "down")[number % 2], "abc"[number % 3]
            file = place / f"{trend}-{grade}-{number:02d}.cntr"
            file.write_bytes(contour(trend, grade, rng=rng))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "run_units", lambda units: map(write_unit, units))
        build(TASKS, data_dir=folder / "corpora", config=RECIPE.build)
    train_here(RECIPE, folder / "run", data_dir=folder / "corpora")
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "run")


def test_own_format_is_read_and_what_its_modality_refuses_is_set_aside(folder: Path):
    manifest = open_manifest(shard_folder(folder / "corpora", task="grade", split="train"))
    assert (manifest.num_examples, manifest.quarantined) == (24, {})
    assert manifest.task == TASKS[1]  # read back from JSON
    assert manifest.stats["longest_input"] == 8


def test_a_step_trains_two_of_three_tasks(folder: Path):
    manifests = {
        name: open_manifest(shard_folder(folder / "corpora", task=name, split="train"))
        for name in RECIPE.tasks
    }
    plan = Plan(manifests, RECIPE.schedule, num_steps=6, seed=0)
    assert [plan.micro_tasks(step) for step in range(4)] == [
        ("trend", "grade"), ("grade", "again"), ("again", "trend"), ("trend", "grade"),
    ]  # fmt: skip
    assert plan.cursors(6) == {"trend": 4, "grade": 4, "again": 4}
    assert run_steps(TASKS, config=RECIPE.schedule) == 120  # 3 tasks of 80 mini-batches, in pairs
    assert task_steps(RECIPE) == {"trend": 80, "grade": 80, "again": 80}


def test_own_augmentation_changes_what_is_read_anew_in_each_epoch(folder: Path):
    manifest = open_manifest(shard_folder(folder / "corpora", task="trend", split="train"))
    manifest = manifest.model_copy(update={"task": TASKS[0]})
    plan = Plan({"trend": manifest}, ScheduleConfig(), num_steps=12, examples="augmented")
    seen: dict[int, list[np.ndarray]] = {}
    for batch in read_batches(plan):
        for row, length, array in zip(
            batch.example_ids, batch.input_lengths, batch.inputs, strict=True
        ):
            seen.setdefault(int(row), []).append(array[:length])
    first, second = seen[0]
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(np.diff(first, axis=0), np.diff(second, axis=0), atol=1e-6)


def test_own_target_is_measured_beside_its_baseline(folder: Path):
    results = evaluate_model(folder / "run", data_dir=folder / "corpora")
    assert {name: one.value for name, one in results.tasks.items()} == {
        "trend": 100, "grade": 100, "again": 100,
    }  # fmt: skip
    samples = results.tasks["grade"].splits[0].samples
    assert {sample.prediction for sample in samples} <= {"a", "b", "c"}
    assert "0.0 0.5 1.0" in {sample.input for sample in samples}


def test_own_inputs_are_answered(predictor: Predictor, tmp_path: Path):
    (tmp_path / "hill.cntr").write_bytes(contour("down", "b", rng=np.random.default_rng(1)))
    [answers] = predictor.predict_all([tmp_path / "hill.cntr"])
    assert {name: str(one) for name, one in answers.items()} == {
        "trend": "down", "grade": "b", "again": "down",
    }  # fmt: skip
    assert set(predictor.predict("grade", [tmp_path / "hill.cntr"])[0].scores) == {"a", "b", "c"}


def test_own_inputs_are_served_and_files_of_other_formats_refused(predictor: Predictor):
    server = example_app(Networks([Network(predictor, uri="hills")]))
    hill = contour("up", "a", rng=np.random.default_rng(1))
    with TestClient(server) as client:
        said = client.post("/v1/predict", data={"task": "trend"}, files={"file": hill})
        refused = client.post("/v1/predict", data={"task": "trend"}, files={"file": b"GIF89a"})
    assert said.json()["answers"][0]["text"] == "up"
    assert refused.status_code == 415
    assert refused.json()["remedy"].endswith("contour")


def test_a_plan_knows_the_own_net_and_the_longest_contour(folder: Path):
    plan = plan_run(RECIPE, data_dir=folder / "none")
    assert plan.parameters["modality/own_contours_py"] == 2 * 32
    assert plan.tasks["grade"].longest_input == 8


def test_examples_of_the_registry_and_of_graphs_are_the_modalitys(predictor: Predictor):
    assert len(input_example(predictor.bundle)) == 3
    inputs, lengths = example_batch(predictor, "trend", num_examples=2)
    assert (tuple(inputs.shape), lengths.tolist()) == ((2, 2, 1), [2, 2])


def test_own_code_counts_in_the_fingerprint_as_shipped_code_does(tmp_path: Path):
    def digests(name: str, *, more: str = "") -> list[str]:
        (tmp_path / name).write_text(Path(CONTOURS).read_text() + more)
        own = str(tmp_path / name)
        format_code = own_format(Source(uri="raw", format=f"{own}:CONTOURS"))
        return [code_digest(load(own)), *format_code]

    first, same = digests("one.py"), digests("two.py", more="# a remark\n")
    assert first == same
    other = digests("three.py", more="HEIGHT = 2\n")
    assert len(other) == 2
    assert not set(other) & set(first)
    assert own_format(Source(uri="raw", format="tsv")) == []


def test_what_is_wrong_with_own_files_is_said_in_a_line(tmp_path: Path):
    with pytest.raises(UnknownNameError, match="nearest: PAIRS"):
        _ = ScheduleConfig(name=f"{CONTOURS}:PAIR").kind
    (tmp_path / "empty.py").touch()
    with pytest.raises(OwnCodeError, match="defines no FEATURE"):
        load(str(tmp_path / "empty.py"))
    wrong = Augmentation(name=f"{CONTOURS}:ContourFeature")
    with pytest.raises(AugmentationError, match="make it a Looks or a Move"):
        check_augmentations(TASKS[0].model_copy(update={"augment": (wrong,)}))
    shipped = Augmentation(name="flip")
    with pytest.raises(AugmentationError, match=r"flip is for image and video, not for .*contours"):
        check_augmentations(TASKS[0].model_copy(update={"augment": (shipped,)}))


def test_two_own_nets_of_one_file_name_are_refused(tmp_path: Path):
    (tmp_path / "own_contours.py").write_text(Path(CONTOURS).read_text())
    other = load(str(tmp_path / "own_contours.py")).FEATURE()
    tasks = {"trend": TASKS[0], "other": TASKS[2].model_copy(update={"inputs": other})}
    with pytest.raises(FittingError, match="have one name in a model"):
        check_nets(RECIPE.model, tasks)


def test_a_recipe_of_own_names_is_read_back_from_its_json(folder: Path):
    text = (folder / "run" / "recipe.json").read_text()
    assert Recipe.model_validate(json.loads(text)) == RECIPE
