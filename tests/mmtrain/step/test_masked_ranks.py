"""Masks learned by two processes under DeepSpeed, against one process, and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mmtrain.step.masked_run import BODIES, MaskedRun, recipe_of
from tests.waiting import GROUP_S

ROOT = Path(__file__).parents[3]
SHARDED = (("zero1", "vit"), ("zero2", "vit"), ("zero2_ep2", "experts"))
SAVED = (*SHARDED, ("zero2_bf16", "norms"))


def run_group(folder: Path, *, jobs: list[str]) -> list[dict]:
    """Results of two ranks, by job."""
    folder.mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env.pop("DS_ACCELERATOR", None)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mmtrain.step.masked_run", str(rank), "2",
             folder / "store", folder / f"{rank}.json", *jobs],
            env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            text, _ = rank.communicate(timeout=GROUP_S)
            assert rank.returncode == 0, text
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("masked")


def job(name: str, engine: str, body: str, *, folder: Path) -> str:
    return f"{name},{engine},{body},{folder / engine}"


@pytest.fixture(scope="module")
def straight(folder: Path) -> list[dict]:
    return run_group(folder / "first", jobs=[job("straight", *x, folder=folder) for x in SAVED])


@pytest.fixture(scope="module")
def resumed(folder: Path, straight: list[dict]) -> list[dict]:
    return run_group(folder / "second", jobs=[job("resumed", *x, folder=folder) for x in SAVED])


@pytest.mark.parametrize(("engine", "body"), SAVED)
def test_ranks_train_the_same_unions(folder, straight, engine, body):
    name = job("straight", engine, body, folder=folder)
    first, second = ([step["unions"] for step in rank[name]["trace"]] for rank in straight)
    assert first == second
    assert len({str(unions) for unions in first}) > 2
    assert all(len(unions) == 2 for unions in first)


@pytest.mark.parametrize(("engine", "body"), SHARDED)
def test_two_ranks_train_what_one_process_does(folder, straight, engine, body):
    alone = MaskedRun.build(recipe_of(engine="torch", body=BODIES[body]))
    expected = alone.train(first=0, last=8)
    result = straight[0][job("straight", engine, body, folder=folder)]
    for ours, its in zip(result["trace"], expected, strict=True):
        assert ours["loss"] == pytest.approx(its["loss"], abs=2e-4)
        assert ours["norm"] == pytest.approx(its["norm"], rel=2e-3)
    learned = alone.engine.model_state()
    assert result["weights"].keys() == learned.keys()
    for name in ("masks.utility", "heads.shape.project.weight"):
        assert result["weights"][name] == pytest.approx(learned[name].numpy(), abs=2e-3), name


@pytest.mark.parametrize(("engine", "body"), SAVED)
def test_resumed_equals_straight_to_the_bit_masks_included(folder, straight, resumed, engine, body):
    for one, other in zip(straight, resumed, strict=True):
        expected = one[job("straight", engine, body, folder=folder)]
        again = other[job("resumed", engine, body, folder=folder)]
        assert again["trace"] == expected["trace"][4:]
        assert again["digests"] == expected["digests"]
    both = [rank[job("resumed", engine, body, folder=folder)]["digests"] for rank in resumed]
    saved = both[0].keys() | both[1].keys()
    assert {"masks.utility/weight", "masks.utility/exp_avg"} <= saved
