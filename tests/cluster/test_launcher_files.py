"""The launcher files are what Ray's own schema allows, and mean what their page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).parents[2] / "cluster"
NAMES = ("laptop", "ssh", "aws", "gcp")
CLOUDS = ("aws", "gcp")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def start_line(name: str, node: str) -> str:
    return load(name)[f"{node}_start_ray_commands"][-1]


@pytest.mark.parametrize("name", NAMES)
def test_rays_own_schema_allows_it(name):
    validate_config(prepare_config(load(name)))


def test_the_schema_finds_a_field_that_does_not_exist():
    with pytest.raises(Exception, match="min_worker"):
        validate_config({**load("aws"), "min_worker": 1})


@pytest.mark.parametrize("name", ["ssh", *CLOUDS])
def test_the_head_runs_no_work(name):
    assert "--num-cpus=0 --num-gpus=0" in start_line(name, "head")


@pytest.mark.parametrize("name", CLOUDS)
def test_the_autoscaler_knows_that_the_head_runs_no_work(name):
    config = load(name)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {
        "CPU": 0, "GPU": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_start_when_asked_for_and_stop_when_idle(name):
    config = load(name)
    workers = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert config["idle_timeout_minutes"] == 10
    assert "MMTRAIN_NODES_WAIT_S=900" in start_line(name, "head")


def test_workers_are_spot_and_the_head_is_not():
    aws, gcp = load("aws")["available_node_types"], load("gcp")["available_node_types"]
    for kind in ("cpu_spot", "gpu_spot"):
        assert aws[kind]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert gcp[kind]["node_config"]["scheduling"][0]["preemptible"] is True
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert "scheduling" not in gcp["head"]["node_config"]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_asks_for_the_token(name):
    lines = [*load(name)["head_start_ray_commands"], *load(name)["worker_start_ray_commands"]]
    starts = [line for line in lines if "ray start" in line]
    assert starts
    assert all("RAY_AUTH_MODE=token" in line for line in starts)


@pytest.mark.parametrize("name", ["ssh", *CLOUDS])
def test_the_token_and_the_clone_are_copied_and_nothing_that_git_ignores(name):
    config = load(name)
    assert config["file_mounts"] == {
        "~/mmtrain": ".", "~/.ray/auth_token": "~/.ray/auth_token",
    }  # fmt: skip
    assert config["rsync_filter"] == [".gitignore"]


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_and_no_open_dashboard_stands_in_a_file(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert "--dashboard-host=0.0.0.0" not in text
    assert not re.search(r"(?i)(password|secret|api_key)\s*[:=]", text)
