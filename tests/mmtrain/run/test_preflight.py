import pytest

from mmtrain.run.preflight import PreflightError, check_disk, check_resources, checkpoint_bytes


def test_workers_and_their_data_tasks_must_fit():
    with pytest.raises(PreflightError, match=r"need 4 logical CPUs, the cluster has 3"):
        check_resources({"CPU": 3}, num_workers=2, data_cpus=1, use_gpu=False)
    check_resources({"CPU": 4}, num_workers=2, data_cpus=1, use_gpu=False)


def test_each_worker_needs_its_gpu():
    with pytest.raises(PreflightError, match="2 workers need a GPU each, the cluster has 1"):
        check_resources({"CPU": 8, "GPU": 1}, num_workers=2, data_cpus=1, use_gpu=True)


def test_full_disk_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(PreflightError, match="GB free"):
        check_disk(tmp_path / "run", needed_bytes=10**18)


def test_disk_for_a_run_is_its_checkpoints_and_bundle():
    assert checkpoint_bytes(10, keep=2) == 10 * 4 * (3 * 3 + 1)
