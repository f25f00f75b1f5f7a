"""Batch norms' running statistics in checkpoints, and over ranks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_deepspeed import run_group

LAYOUTS = ("zero1", "zero2_bf16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("norms")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict]:
    jobs = [f"norms,{layout},{folder / layout}" for layout in LAYOUTS]
    return run_group(folder / "two", world_size=2, jobs=jobs)


@pytest.fixture(scope="module")
def resumed(folder: Path, two: list[dict]) -> list[dict]:
    jobs = [f"norms_resume,{layout},{folder / layout}" for layout in LAYOUTS]
    return run_group(folder / "resumed", world_size=2, jobs=jobs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_average_their_statistics_when_they_save(folder, two, layout):
    first, second = (rank[f"norms,{layout},{folder / layout}"] for rank in two)
    assert first["own"] != second["own"]
    mean = [(a + b) / 2 for a, b in zip(first["own"], second["own"], strict=True)]
    assert first["kept"] == second["kept"] == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_the_states_tells_the_mean_and_changes_no_statistics(folder, two, layout):
    first, second = (rank[f"norms,{layout},{folder / layout}"] for rank in two)
    assert (first["read"], second["read"]) == (first["own"], second["own"])
    assert first["told"] == first["kept"]
    assert second["told"] is None  # rank 0 writes what is not sharded


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_equals_straight_statistics_included(folder, two, resumed, layout):
    for straight, again in zip(two, resumed, strict=True):
        expected = straight[f"norms,{layout},{folder / layout}"]["digests"]
        assert again[f"norms_resume,{layout},{folder / layout}"]["digests"] == expected


def test_statistics_stay_in_full_precision_beside_bf16_weights(folder, two):
    result = two[0][f"norms,zero2_bf16,{folder / 'zero2_bf16'}"]
    assert result["dtypes"] == ["torch.float32", "torch.int64"]
    assert any("running_mean" in name for name in result["digests"])


def test_plain_engine_resumes_to_the_bit(tmp_path):
    from ranks import norms, norms_resume

    for layout in ("torch", "torch_bf16"):
        straight = norms(layout, str(tmp_path / layout))
        assert straight["own"] == straight["kept"]
        assert norms_resume(layout, str(tmp_path / layout))["digests"] == straight["digests"]
