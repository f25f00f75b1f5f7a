"""Real runs of what one task a step with fixed rates does not show: rates that follow losses,
blended examples, momentum, and several tasks in a step.
"""

import json
import threading
from pathlib import Path

import pytest
from torch import equal

from mmtrain import checkpoint
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.train import build_corpora, train
from pipelines.adaptive import Mixing
from tests.integration.test_train import examples, kill_a_worker, states

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS, SAVED, DECIDED = 12, 6, (4, 8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(load_recipe("debug"), data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return override(
        load_recipe("debug"),
        [
            'engine={"name": "deepspeed", "zero_stage": 2}',
            'optimizer={"name": "sgd", "schedule": "warm_cosine", "learning_rate": 0.1}',
            'schedule={"name": "adaptive", "adaptive": {"decide_every": 4, "power": 3}}',
            "tasks.image_classification.mixup=0.3",
            "tasks.image_classification.warmup_steps=3",
            "tasks.image_classification.learning_rate=0.05",
            'balancing="uncertainty"',
            "monitor_every=2",
            "num_workers=2",
            f"num_steps={STEPS}",
            f"save_every={SAVED}",
            "keep_checkpoints=9",
            "log_every=1",
            "check_ranks=true",
        ],
    )


@pytest.fixture(scope="module")
def straight(recipe, data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train(recipe, out=out, data_dir=data_dir)
    return out


def decisions(out: Path) -> dict[int, dict[str, int]]:
    ref = checkpoint.latest(out / "checkpoints")
    assert ref is not None
    return Mixing.model_validate(checkpoint.read_progress(ref).mixing).decisions


def test_decisions_are_in_the_checkpoint_and_what_was_trained(straight, recipe):
    decided = decisions(straight)
    assert tuple(decided) == DECIDED
    lines = [json.loads(line) for line in (straight / "series.jsonl").read_text().splitlines()]
    counts = {0: dict.fromkeys(recipe.tasks, 0)} | {
        line["step"]: line["task_steps"] for line in lines
    }
    for step, asked in decided.items():
        assert {t: counts[step + 4][t] - counts[step][t] for t in recipe.tasks} == asked


def test_gradients_of_both_tasks_were_compared(straight):
    lines = [json.loads(line) for line in (straight / "gradients.jsonl").read_text().splitlines()]
    cosine = lines[-1]["cosines"][0][1]
    assert -1 <= cosine <= 1
    assert lines[-1]["cosines"][1][0] == cosine


def test_run_killed_between_decisions_goes_on_and_equals_the_straight_run_to_the_bit(
    straight, recipe, data_dir, tmp_path
):
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_a_worker,
        args=(tmp_path / "series.jsonl",),
        kwargs={"after_step": SAVED + 1, "killed": killed},
    )
    killer.start()
    train(recipe, out=tmp_path, data_dir=data_dir)
    killer.join()
    assert killed
    assert SAVED < killed[0] < STEPS
    assert decisions(tmp_path) == decisions(straight)
    assert examples(tmp_path) == examples(straight)
    expected, resumed = states(straight), states(tmp_path)
    assert expected.keys() == resumed.keys()
    assert any("log_variances" in name for name in expected)
    for name, tensors in expected.items():
        assert set(tensors) <= {"weight", "momentum_buffer"}
        for key, tensor in tensors.items():
            assert equal(tensor, resumed[name][key]), (name, key)


def test_tasks_of_one_step_train_without_their_conflicts(data_dir, recipe, tmp_path):
    projected = override(
        recipe,
        [
            'balancing="pcgrad"',
            'schedule={"name": "accumulating"}',
            "num_steps=3",
            "engine.accumulation=2",
        ],
    )
    train(projected, out=tmp_path, data_dir=data_dir)
    lines = [json.loads(line) for line in (tmp_path / "series.jsonl").read_text().splitlines()]
    assert lines[-1]["task_steps"] == dict.fromkeys(recipe.tasks, 3)
    assert all(line["loss"].keys() == recipe.tasks.keys() for line in lines)
