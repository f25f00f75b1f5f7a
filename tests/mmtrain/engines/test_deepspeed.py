"""DeepSpeed's engine against the plain one, on groups of 1, 2 and 3 processes (`ranks.py`).

Each group runs many jobs, since a process takes seconds to start; the tests read what they saw.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import GROUP_S

HERE = Path(__file__).parent
ZERO = ("zero0", "zero1", "zero2", "zero3")
SAVED = ("zero0", "zero1", "zero1_ep2", "zero2_ep2", "zero3", "zero2_bf16", "zero3_offload",
         "zero0+sgd", "zero1_ep2+sgd", "zero2+sgd", "zero3+sgd", "zero2_bf16+sgd",
         "zero2_ep2+lion", "zero3_offload+lion")  # fmt: skip
MOMENTUM = ("zero0+sgd", "zero1+sgd", "zero2+sgd", "zero3+sgd", "zero3+stale", "zero0+stale",
            "zero2+stale")  # fmt: skip
PROJECTED = ("zero0+sgd", "zero1+sgd", "zero2+sgd")
IDLE = ("zero1", "zero2_ep2", "zero3", "zero1+sgd", "zero3+sgd")
POISONED = ("zero0", "zero1", "zero2_ep2", "zero3", "zero2_bf16")


def run_group(folder: Path, *, world_size: int, jobs: list[str]) -> list[dict]:
    """Results of all ranks, by job."""
    folder.mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env.pop("DS_ACCELERATOR", None)
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "ranks.py", str(rank), str(world_size), folder / "store",
             folder / f"{rank}.json", *jobs],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        for rank in ranks:
            text, _ = rank.communicate(timeout=GROUP_S)
            assert rank.returncode == 0, text
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def one(folder):
    """One process; it starts no process group before the engine does."""
    jobs = [f"straight,torch,{micros},30" for micros in (1, 3)]
    jobs += [f"straight,{layout},{micros},30" for layout in ZERO for micros in (1, 3)]
    jobs += ["projected,torch+sgd", "projected,zero1"]
    jobs += [f"straight,torch+{kind},3,12" for kind in ("sgd", "stale")] + ["momenta,torch+sgd"]
    jobs += ["real_model,torch", "real_model,zero3", "real_model,torch,30"]
    jobs += ["straight,torch_bf16,2,12", "straight,zero1_bf16,1,12", "straight,torch_bf16,1,12"]
    return run_group(folder / "one", world_size=1, jobs=jobs)[0]


@pytest.fixture(scope="module")
def two(folder):
    jobs = [f"straight,{layout},3,30" for layout in (*ZERO, "zero1_ep2", "zero2_ep2")]
    jobs += [f"straight,{layout},2,12" for layout in ("zero2_bf16", "zero3_bf16")]
    jobs += [f"straight,zero{stage}_offload,3,30" for stage in (2, 3)]
    jobs += [f"straight,{layout},3,12" for layout in MOMENTUM]
    jobs += [f"momenta,zero{stage}+sgd" for stage in range(4)]
    jobs += [f"projected,{layout}" for layout in PROJECTED]
    jobs += [f"idle,{layout}" for layout in IDLE]
    jobs += [f"poison,{layout}" for layout in POISONED]
    jobs += [f"save,{layout},{folder / layout}" for layout in SAVED]
    jobs += ["real_model,zero2_ep2", "real_model,zero3"]
    jobs += ["real_model,zero2,30", "real_model,zero2_ep2,30"]
    jobs += [f"full_disk,zero1,{folder / 'full'}"]
    return run_group(folder / "two", world_size=2, jobs=jobs)


@pytest.fixture(scope="module")
def two_resumed(folder, two):
    jobs = [f"resume,{layout},{folder / layout}" for layout in SAVED]
    jobs += [f"other_model,zero1,{folder / 'zero1_ep2'}"]
    return run_group(folder / "two_resumed", world_size=2, jobs=jobs)


@pytest.fixture(scope="module")
def elsewhere(folder, two):
    """The checkpoint of two ranks with shared experts, resumed in other layouts."""
    saved = folder / "zero2_ep2"
    one = [f"resume,{layout},{saved}" for layout in ("torch", "zero1", "zero3")]
    three = [f"resume,{layout},{saved}" for layout in ("zero0", "zero1", "zero2", "zero3")]
    groups = [(1, one), (3, three)]
    return [
        run_group(folder / f"elsewhere{size}", world_size=size, jobs=jobs)[0]
        for size, jobs in groups
    ]


def furthest(left: dict, right: dict) -> float:
    """Largest difference between two results' losses, norms and weights."""
    steps = zip(left["trace"], right["trace"], strict=True)
    values = [abs(a - b) for ours, theirs in steps for a, b in zip(ours, theirs, strict=True)]
    if "weights" in left and "weights" in right:
        for name, value in left["weights"].items():
            values += [abs(a - b) for a, b in zip(value, right["weights"][name], strict=True)]
    return max(values)


@pytest.mark.parametrize("micros", [1, 3])
@pytest.mark.parametrize("layout", ZERO)
def test_one_process_equals_plain_torch_over_30_steps(one, layout, micros):
    plain = one[f"straight,torch,{micros},30"]
    assert plain["trace"][0][1] > 0.5 or micros == 3  # norms above the clip, so it was used
    assert furthest(one[f"straight,{layout},{micros},30"], plain) < 1e-5


@pytest.mark.parametrize("layout", [*ZERO, "zero1_ep2", "zero2_ep2"])
def test_two_processes_equal_plain_torch_over_30_steps(one, two, layout):
    assert furthest(two[0][f"straight,{layout},3,30"], one["straight,torch,3,30"]) < 1e-5


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_on_the_cpu_equals_plain_torch_over_30_steps(one, two, stage):
    ours = two[0][f"straight,zero{stage}_offload,3,30"]
    assert furthest(ours, one["straight,torch,3,30"]) < 1e-5


def test_the_shipped_model_trains_the_same_in_all_layouts(one, two):
    plain = one["real_model,torch"]
    assert furthest(one["real_model,zero3"], plain) < 1e-4
    assert furthest(two[0]["real_model,zero2_ep2"], plain) < 1e-4
    assert furthest(two[0]["real_model,zero3"], plain) < 1e-4


@pytest.mark.parametrize("layout", ["zero2", "zero2_ep2"])
def test_decay_in_the_loss_is_the_same_in_all_layouts(one, two, layout):
    plain = one["real_model,torch,30"]
    assert furthest(plain, one["real_model,torch"]) > 1e-3
    assert furthest(two[0][f"real_model,{layout},30"], plain) < 1e-4


def test_bf16_agrees_between_engines_to_its_rounding(one, two):
    plain = one["straight,torch_bf16,2,12"]
    assert furthest(one["straight,zero1_bf16,1,12"], one["straight,torch_bf16,1,12"]) < 2e-2
    assert furthest(two[0]["straight,zero2_bf16,2,12"], plain) < 2e-2
    assert furthest(two[0]["straight,zero3_bf16,2,12"], plain) < 2e-2


@pytest.mark.parametrize("layout", MOMENTUM)
def test_momentum_on_two_processes_equals_plain_torch(one, two, layout):
    kind = layout.partition("+")[2]
    assert furthest(two[0][f"straight,{layout},3,12"], one[f"straight,torch+{kind},3,12"]) < 1e-5


@pytest.mark.parametrize("stage", range(4))
def test_momentum_by_task_on_two_processes_equals_plain_torch(one, two, stage):
    assert furthest(two[0][f"momenta,zero{stage}+sgd"], one["momenta,torch+sgd"]) < 1e-5
    assert furthest(one["momenta,torch+sgd"], one["straight,torch+sgd,3,12"]) > 1e-3


@pytest.mark.parametrize("layout", PROJECTED)
def test_projected_gradients_on_two_processes_equal_those_of_plain_torch(one, two, layout):
    assert furthest(two[0][f"projected,{layout}"], one["projected,torch+sgd"]) < 1e-5


@pytest.mark.parametrize("layout", IDLE)
def test_owners_that_took_no_part_keep_weights_and_moments_to_the_bit(two, layout):
    changed = {name for rank in two for name in rank[f"idle,{layout}"]["changed"]}
    tensors = 2 if "sgd" in layout else 3
    assert len(changed) == 12 * tensors  # of 12 entries: not the red head, nor the buffer
    assert not any("red" in name or "seen" in name for name in changed)


@pytest.mark.parametrize("layout", POISONED)
def test_a_nan_on_one_rank_changes_nothing_and_training_goes_on(two, layout):
    for rank in two:
        result = rank[f"poison,{layout}"]
        assert not math.isfinite(result["norm"])
        assert result["same"]
        assert all(math.isfinite(value) for pair in result["trace"] for value in pair)


@pytest.mark.parametrize("layout", SAVED)
def test_resumed_equals_straight_to_the_bit(folder, two, two_resumed, layout):
    for straight, resumed in zip(two, two_resumed, strict=True):
        expected = straight[f"save,{layout},{folder / layout}"]
        result = resumed[f"resume,{layout},{folder / layout}"]
        assert result["trace"] == expected["trace"]
        assert result["digests"] == expected["digests"]
        assert len(result["digests"]) > 10


@pytest.mark.parametrize("layout", ["torch", "zero1", "zero3"])
def test_two_ranks_resume_on_one(folder, two, elsewhere, layout):
    straight = two[0][f"save,zero2_ep2,{folder / 'zero2_ep2'}"]
    assert furthest(elsewhere[0][f"resume,{layout},{folder / 'zero2_ep2'}"], straight) < 1e-5


@pytest.mark.parametrize("layout", ["zero0", "zero1", "zero2", "zero3"])
def test_two_ranks_resume_on_three(folder, two, elsewhere, layout):
    straight = two[0][f"save,zero2_ep2,{folder / 'zero2_ep2'}"]
    assert furthest(elsewhere[1][f"resume,{layout},{folder / 'zero2_ep2'}"], straight) < 1e-5


def test_a_checkpoint_of_another_model_is_refused_with_the_parameter(folder, two_resumed):
    for rank in two_resumed:
        messages = rank[f"other_model,zero1,{folder / 'zero1_ep2'}"]["messages"]
        assert len(messages) == 3
        assert all("in the checkpoint" in text or "the model has not" in text for text in messages)


def test_when_one_rank_cannot_write_all_are_told_and_nothing_is_published(folder, two):
    first, last = (rank[f"full_disk,zero1,{folder / 'full'}"] for rank in two)
    assert "another rank" in first["error"]
    assert "No space left" in last["error"]
    assert not first["latest"]
