"""Two processes that see different checkpoints: one choice, or an error on both."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_deepspeed import run_group

pytestmark = pytest.mark.timeout(300)
CASES = [(0, "none"), (0, "changed"), (0, "unfinished"), (0, "directory"),
         (1, "unfinished"), (1, "other"), (1, "changed"), (1, "directory")]  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[tuple[int, str], list[dict]]:
    """What both ranks saw, by the rank whose view is torn and how."""
    folder = tmp_path_factory.mktemp("torn")
    jobs = {case: f"torn,zero1,{folder / '-'.join(map(str, case))},{case[0]},{case[1]}"
            for case in CASES}  # fmt: skip
    ranks = run_group(folder / "group", world_size=2, jobs=list(jobs.values()))
    return {case: [rank[job] for rank in ranks] for case, job in jobs.items()}


@pytest.mark.parametrize("tear", ["changed", "unfinished", "directory"])
def test_what_rank_0_passes_over_no_rank_loads(seen, tear):
    for rank in seen[0, tear]:
        assert rank["error"] is None
        assert rank["digests"] == rank["saved"]["states of 2"]


@pytest.mark.parametrize("tear", ["unfinished", "other"])
def test_a_rank_that_sees_another_checkpoint_stops_all_with_rank_step_and_both_digests(seen, tear):
    digest = seen[1, tear][0]["saved"]["4"][:12]
    first, second = (rank["error"] for rank in seen[1, tear])
    assert second is not None
    for error in (first, second):
        assert "rank 1 sees another checkpoint than rank 0" in error
        assert "step 4" in error
        found = re.search(r"has digest (\w+) there.*, (\w+) on rank 0", error)
        assert found is not None
        assert found[2] == digest
        assert (found[1] == "none") == (tear == "unfinished")
        assert found[1] != digest


@pytest.mark.parametrize("tear", ["changed", "directory"])
def test_a_rank_that_cannot_read_what_rank_0_chose_stops_all_and_is_named(seen, tear):
    digest = seen[1, tear][0]["saved"]["4"][:12]
    first, second = (rank["error"] for rank in seen[1, tear])
    assert first.startswith(
        f"another rank, 1, could not read step 4, whose manifest has digest {digest}"
    )
    assert second.startswith(f"rank 1 could not read step 4, whose manifest has digest {digest}")
    for error in (first, second):
        assert re.search(r"weights-0000\d-00000.safetensors", error)
        assert ("of SHA-256" if tear == "changed" else "it is no file but a directory") in error


def test_all_ranks_load_one_checkpoint_and_read_each_file_once(seen):
    first, second = seen[0, "none"]
    for rank in (first, second):
        assert rank["error"] is None
        assert rank["digests"] == rank["saved"]["states of 4"]
    weights = ("weights-00000-00000.safetensors", "weights-00001-00000.safetensors")
    assert [first["reads"][name] for name in weights] == [2, 2]  # checked, then loaded
    assert [second["reads"][name] for name in weights] == [1, 1]
    assert second["reads"].keys() == {*weights, "manifest.json"}
