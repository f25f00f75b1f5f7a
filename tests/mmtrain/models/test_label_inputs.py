"""A class name as the input of a task, from a table to an answer: build, train, measure, serve."""

import json
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from typer.testing import CliRunner

from mmtrain.bundle import load_bundle
from mmtrain.checkpoint import Progress
from mmtrain.cli import app
from mmtrain.derive.onnx_export import example_batch
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import Ranks
from mmtrain.evaluate.evaluate import evaluate_model
from mmtrain.models import multimodel
from mmtrain.models.fitting import FittingError
from mmtrain.models.model import ModelConfig, build_model
from mmtrain.planning.estimate import plan_run
from mmtrain.predict.bulk_answers import BatchJob, predict_part
from mmtrain.predict.bulk_inputs import open_input, parts
from mmtrain.predict.predictor import PredictionError, Predictor
from mmtrain.recipe import Recipe
from mmtrain.report.report import Run, report_page
from mmtrain.run.corpora import open_corpora
from mmtrain.run.export import export_run
from mmtrain.run.job import Job, Spent
from mmtrain.run.model import fitted, task_specs
from mmtrain.run.prepare import prepare_run
from mmtrain.serving.networks import Network, Networks
from mmtrain.step.objective import count_targets, micro_loss
from mmtrain.step.passes import Pass
from mmtrain.step.plans import build_plan
from mmtrain.step.rates import step_rates
from mmtrain.store.config import TrackingConfig
from mmtrain.store.pyfunc_example import input_example
from pipelines import build as build_module
from pipelines.build import build
from pipelines.layout import BuildConfig
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.stream import read_batches
from pipelines.task import Source, Task
from pipelines.writer import write_unit
from tests.mmtrain.example_server import example_app

ANIMALS = {
    "cat": ("miaow", "four"), "dog": ("woof", "four"), "owl": ("hoot", "two"),
    "hen": ("cluck", "two"), "eel": ("blub", "none"), "carp": ("blub", "none"),
}  # fmt: skip
ANIMAL = LabelFeature(classes=tuple(ANIMALS))
SHARED = {"inputs": ANIMAL, "batch_size": 6}


def task(name: str, **fields: object) -> Task:
    source = Source(uri="raw/animals", format="tsv", options={"input": "animal", "target": name})
    return Task.model_validate({"name": name, "source": source, **SHARED, **fields})


TASKS = (
    task("call", targets=TextFeature(max_tokens=8), command="to_call", metrics=("exact",),
         baseline="copy_source"),
    task("legs", targets=LabelFeature(classes=("none", "two", "four")), metrics=("accuracy",),
         baseline="majority_class"),
)  # fmt: skip
RECIPE = Recipe(
    name="animals",
    tasks={one.name: one for one in TASKS},
    model=ModelConfig(
        body=multimodel.Config(
            model_dim=32, num_heads=2, encoder_conv_blocks=1, encoder_attention_blocks=1,
            mixer_blocks=1, decoder_blocks=1, experts="none", drop_prob=0.0, join="none",
        )
    ),
    build=BuildConfig(vocabulary_size=300),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    engine=EngineConfig(name="torch"),
    num_steps=80,
)  # fmt: skip


def build_corpora(data_dir: Path) -> None:
    for split in ("train", "validation", "test"):
        folder = data_dir / "raw" / "animals" / split
        folder.mkdir(parents=True)
        rows = [f"{animal}\t{call}\t{legs}" for animal, (call, legs) in ANIMALS.items()]
        (folder / "a.tsv").write_text("\n".join(["animal\tcall\tlegs", *rows]) + "\n")
    build(TASKS, data_dir=data_dir, config=RECIPE.build)


def train(out: Path, *, data_dir: Path) -> None:
    """The run's steps in this process, without Ray."""
    prepare_run(RECIPE, out=out, data_dir=data_dir, resume=False)
    corpora, ranks = open_corpora(RECIPE, data_dir), Ranks(0, 1, torch.device("cpu"))
    specs = task_specs(RECIPE, corpora.vocabulary)
    model = build_model(fitted(RECIPE, corpora.vocabulary), specs, seed=0)
    engine = build_engine(RECIPE.engine, model=model, optimizer=RECIPE.optimizer)
    owners = {name: model.owners(name) for name in RECIPE.tasks}
    plan = build_plan(RECIPE, corpora.train, ranks=ranks, start=Progress(step=0))
    for micro in read_batches(plan):
        rates = step_rates(
            RECIPE.optimizer, step=micro.step, num_steps=RECIPE.num_steps, owners=owners,
            tasks={micro.task: RECIPE.tasks[micro.task]},
        )  # fmt: skip
        counts = count_targets([micro], RECIPE, ranks)
        loss = micro_loss(
            engine, micro, RECIPE, ranks, num_targets=counts, rates=rates, masked=Pass()
        )
        engine.backward(loss.share)
        engine.step(rates.learning_rates, learning_rates=rates.learning_rates, **rates.decays)
    job = Job(RECIPE.model_dump_json(), out, data_dir, TrackingConfig(), run_id=None)
    export_run(
        job, RECIPE, corpora, model=model.config, specs=specs, weights=engine.model_state(),
        spent=Spent(0.0, {}, {}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `corpora` and a trained `run`."""
    folder = tmp_path_factory.mktemp("animals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "run_units", lambda units: map(write_unit, units))
        build_corpora(folder / "corpora")
    train(folder / "run", data_dir=folder / "corpora")
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "run")


def test_every_class_has_its_own_position_and_its_own_answer(folder: Path, predictor: Predictor):
    assert predictor.model.stems["label"].table.weight.shape == (6, 32)  # type: ignore[union-attr]
    results = evaluate_model(folder / "run", data_dir=folder / "corpora")
    assert {name: one.value for name, one in results.tasks.items()} == {"call": 100, "legs": 100}
    assert "miaow" in report_page(results, run=Run())
    assert {sample.input for sample in results.tasks["legs"].splits[0].samples} < set(ANIMALS)


def test_the_bundle_knows_the_classes_of_its_input(folder: Path):
    card = load_bundle(folder / "run" / "bundle").card
    assert card.model.nets["label"].classes == ANIMAL.classes  # type: ignore[attr-defined]
    assert json.loads((folder / "run" / "recipe.json").read_text())["model"]["nets"] == {}


def test_a_class_is_predicted_by_its_name(folder: Path, predictor: Predictor):
    assert [str(one) for one in predictor.predict("call", ["owl", b"cat"])] == ["hoot", "miaow"]
    told = CliRunner().invoke(app, ["predict", str(folder / "run"), "--task", "legs", "hen"])
    assert told.output.split() == ["hen", "two"]
    both = predictor.predict_all(["eel"])[0]
    assert {name: str(one) for name, one in both.items()} == {"call": "blub", "legs": "none"}


def test_an_unknown_class_is_refused_with_the_nearest(predictor: Predictor):
    with pytest.raises(PredictionError, match=r"'carb', as label of legs: .*nearest: carp"):
        predictor.predict("legs", ["carb"])


def test_a_file_of_classes_is_answered_row_by_row(
    folder: Path, predictor: Predictor, tmp_path: Path
):
    (tmp_path / "a.csv").write_text("input\ndog\nunicorn\nhen\n")
    data = open_input(str(tmp_path / "a.csv"))
    job = BatchJob(
        bundle=folder / "run" / "bundle", digest=predictor.bundle.digest, data=data,
        tasks=("call",), out=tmp_path, format="jsonl", batch_size=2, beam_size=1,
    )  # fmt: skip
    (part,) = parts(data, rows_a_part=10)
    report = predict_part(predictor, job, part)
    rows = [json.loads(line) for line in (tmp_path / report.file).read_text().splitlines()]
    assert [row["text"] for row in rows] == ["woof", None, "cluck"]
    assert "unknown class: 'unicorn', not of cat, dog" in rows[1]["error"]


def test_a_server_lists_the_classes_and_answers_them(predictor: Predictor):
    server = example_app(Networks([Network(predictor, uri="animals")]))
    with TestClient(server) as client:
        listed = client.get("/v1/tasks").json()["tasks"]
        said = client.post("/v1/predict", json={"task": "legs", "input": "hen"}).json()["answers"]
        form = client.post("/v1/predict", data={"modality": "label"}, files={"file": b"owl"})
        refused = client.post("/v1/predict", json={"task": "legs", "input": "carb"})
    assert listed[1]["modality"] == "label"
    assert listed[1]["choices"] == list(ANIMALS)
    assert listed[1]["classes"] == ["none", "two", "four"]
    assert said[0]["text"] == "two"
    assert [one["text"] for one in form.json()["answers"]] == ["hoot", "two"]
    assert refused.status_code == 422
    assert "nearest: carp" in refused.json()["cause"]
    assert refused.json()["remedy"] == "send one that GET /v1/tasks lists"


def test_examples_of_the_registry_and_of_graphs_are_classes(predictor: Predictor):
    assert input_example(predictor.bundle)["input"].tolist() == ["cat", "cat"]
    inputs, lengths = example_batch(predictor, "legs", num_examples=2)
    assert inputs.tolist() == [[0], [0]]
    assert lengths.tolist() == [1, 1]


def test_a_plan_counts_an_embedding_for_each_class_and_the_vocabulary_that_was_built(folder: Path):
    built = plan_run(RECIPE, data_dir=folder / "corpora")
    assert built.parameters["modality/label"] == 6 * 32
    vocabulary = open_corpora(RECIPE, folder / "corpora").vocabulary
    assert vocabulary is not None
    assert vocabulary.size < 300
    assert built.parameters["modality/text_output"] == 2 * vocabulary.size * 32
    assert not any("vocabulary" in line for line in built.assumed)
    unbuilt = plan_run(RECIPE, data_dir=folder / "none")
    assert unbuilt.parameters["modality/text_output"] == 2 * 300 * 32
    assert "a vocabulary of 300 tokens, as the recipe allows" in unbuilt.assumed


def test_tasks_of_other_classes_cannot_share_the_embedding(folder: Path, tmp_path: Path):
    other = TASKS[1].model_copy(update={"inputs": LabelFeature(classes=("cat", "dog"))})
    recipe = RECIPE.with_(tasks={"call": TASKS[0], "legs": other})
    with pytest.raises(FittingError, match=r"tasks call and legs share net 'label': .*classes cat"):
        prepare_run(recipe, out=tmp_path, data_dir=folder / "corpora", resume=False)
