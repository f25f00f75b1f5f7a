"""Evaluation on built splits, against a slow twin that scores one example at a time."""

import shutil
from pathlib import Path

import pytest
import torch

from mmtrain.evaluate.evaluate import EvaluationConfig, evaluate, evaluate_model
from mmtrain.evaluate.results import Results
from mmtrain.predict.predictor import Predictor
from pipelines.errors import CorpusError, UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_corpus import RAW, TASKS, build_example_corpora, example_vocabulary


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_example_corpora(folder, vocabulary=example_vocabulary())
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(example_bundle(tmp_path_factory.mktemp("model") / "bundle"))


@pytest.fixture(scope="module")
def results(predictor: Predictor, data_dir: Path) -> Results:
    return evaluate(predictor, data_dir=data_dir)


def values(results: Results, task: str, *, split: int = 0) -> dict[str, float]:
    return {score.metric: score.value for score in results.tasks[task].splits[split].scores}


def baselines(results: Results, task: str, *, split: int = 0) -> dict[str, float]:
    return {score.metric: score.baseline for score in results.tasks[task].splits[split].scores}


def test_every_metric_of_every_task_is_measured(results: Results):
    for name, task in TASKS.items():
        assert tuple(values(results, name)) == task.metrics
    assert results.tasks["trees"].metric == "bracket_f1"
    assert (results.tasks["names"].steps, results.tasks["names"].seconds) == (3, 1.5)


def test_log_perplexity_is_that_of_one_example_at_a_time(predictor: Predictor, results: Results):
    spec = predictor.tasks["names"]
    nll, count = 0.0, 0
    for source, target in RAW["names"]["test"]:
        vocabulary = predictor.vocabulary
        assert vocabulary is not None
        inputs = torch.tensor([[*vocabulary.encode(str(source)), 1]])
        targets = torch.tensor([[*vocabulary.encode(str(target)), 1]])
        with torch.inference_mode():
            outputs = predictor.model(
                task="names",
                inputs=inputs,
                input_lengths=torch.tensor([inputs.shape[1]]),
                targets=targets,
                target_lengths=torch.tensor([targets.shape[1]]),
            )
        log_probs = outputs.logits.log_softmax(-1)[0]
        nll -= sum(log_probs[place, token].item() for place, token in enumerate(targets[0]))
        count += targets.shape[1]
    assert spec.spec.num_outputs is None
    assert values(results, "names")["log_perplexity"] == pytest.approx(nll / count, rel=1e-4)


def test_accuracy_is_that_of_the_answers(predictor: Predictor, results: Results):
    rows = RAW["shades"]["test"]
    answers = predictor.predict("shades", [value for value, _ in rows if isinstance(value, bytes)])
    right = sum(a.text == target for a, (_, target) in zip(answers, rows, strict=True))
    assert values(results, "shades")["accuracy"] == 100.0 * right / len(rows)
    assert values(results, "shades")["top5_accuracy"] == 100.0


def test_baselines_learn_from_the_training_split(results: Results):
    assert baselines(results, "shades")["accuracy"] == 50.0  # always "dark"; one of two is
    assert baselines(results, "names")["exact"] == 50.0  # "Peru" is "Peru"
    assert baselines(results, "names", split=1)["exact"] == 100.0  # so is "Mali"
    # (S DT (VP NN (VP VBD ) ) ) or alike: only the span of S is right
    assert 0.0 < baselines(results, "trees")["bracket_f1"] < 100.0


def test_the_harder_split_stands_beside_the_test(results: Results):
    assert [split.split for split in results.tasks["names"].splits] == ["test", "test_hard"]
    assert [split.split for split in results.tasks["trees"].splits] == ["test"]


def test_samples_name_their_examples_and_show_their_inputs(results: Results):
    names = results.tasks["names"].splits[0].samples
    assert [(s.example_id, s.input, s.reference) for s in names] == [
        (0, "Peru", "Peru"),
        (1, "France", "Frankreich"),
    ]
    shades = results.tasks["shades"].splits[0].samples
    assert shades[0].input.startswith("data:image/png;base64,")


def test_the_same_model_and_shards_give_the_same_numbers(
    predictor: Predictor, data_dir: Path, results: Results
):
    again = evaluate(predictor, data_dir=data_dir, config=EvaluationConfig(batch_size=1))
    for name in TASKS:
        for metric, value in values(results, name).items():
            assert values(again, name)[metric] == pytest.approx(value, rel=1e-4), (name, metric)


def test_a_limit_measures_the_first_examples_and_progress_is_told(
    predictor: Predictor, data_dir: Path
):
    told: list[tuple[str, int, int]] = []
    results = evaluate(
        predictor,
        data_dir=data_dir,
        tasks=("shades",),
        config=EvaluationConfig(limit=1),
        on_batch=lambda *progress: told.append(progress),
    )
    assert results.tasks["shades"].splits[0].num_examples == 1
    assert told == [("shades", 1, 1)]


def test_an_unknown_task_or_split_is_refused(predictor: Predictor, data_dir: Path, tmp_path: Path):
    with pytest.raises(UnknownNameError, match="names"):
        evaluate(predictor, data_dir=data_dir, tasks=("name",))
    with pytest.raises(UnknownNameError, match="test_hard"):
        evaluate_model(tmp_path, data_dir=data_dir, split="test_hardest")


def test_corpora_of_another_vocabulary_or_not_built_are_refused(
    predictor: Predictor, data_dir: Path, tmp_path: Path
):
    with pytest.raises(CorpusError, match="not built"):
        evaluate(predictor, data_dir=tmp_path)
    other = tmp_path / "other"
    shutil.copytree(data_dir, other)
    for path in other.rglob("manifest.json"):
        path.write_text(path.read_text().replace(example_vocabulary().digest, "0" * 16))
    with pytest.raises(CorpusError, match="vocabulary"):
        evaluate(predictor, data_dir=other)
