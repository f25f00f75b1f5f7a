"""Facts of the container image and of MLflow's compose file."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.cli import cli as mlflow_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster/Containerfile").read_text()
FINAL = TEXT.rpartition("\nFROM ")[2]
PINNED = dict(
    line.split("==")
    for line in (ROOT / "cluster/constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "cluster/compose.yaml").read_text())


def test_one_file_builds_for_cpu_and_cuda():
    assert "ARG ACCELERATOR=cpu" in TEXT
    assert "download.pytorch.org/whl/${ACCELERATOR}" in TEXT
    assert "NVIDIA_VISIBLE_DEVICES=all" in FINAL


def test_the_image_ends_as_a_user_without_rights():
    users = re.findall(r"^USER (\S+)", FINAL, flags=re.MULTILINE)
    assert users == ["1000:1000"]


def test_the_base_has_one_exact_version():
    assert re.findall(r"^ARG PYTHON=(\S+)", TEXT, flags=re.MULTILINE) == [
        "python:3.12.12-slim-bookworm"
    ]
    assert re.findall(r"^FROM (\S+)", TEXT, flags=re.MULTILINE) == ["${PYTHON}", "${PYTHON}"]


def test_no_build_tool_reaches_the_last_stage():
    assert not re.search(r"\b(gcc|g\+\+|build-essential|make|git|curl|pip install)\b", FINAL)
    assert "COPY --from=build /opt/mmtrain /opt/mmtrain" in FINAL


def test_apt_takes_what_is_asked_for_and_leaves_no_lists():
    installs = re.findall(r"apt-get install ([^\\]+)", FINAL)
    assert installs == ["--yes --no-install-recommends wget=1.21.* "]
    assert "rm -rf /var/lib/apt/lists/*" in FINAL


def test_every_pip_install_is_held_to_the_constraints():
    lines = [line for line in TEXT.replace("\\\n", " ").splitlines() if "pip install" in line]
    assert len(lines) == 2
    assert all("--constraint cluster/constraints.txt" in line for line in lines)


def test_no_secret_is_built_in():
    assert not re.search(r"(?i)^(ARG|ENV).*(token=(?!$)\w{9,}|password|secret)", TEXT, re.MULTILINE)


def test_every_pinned_dependency_is_a_version_that_we_allow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    allowed = {canonicalize_name(one.name): one.specifier for one in map(Requirement, wanted)}
    assert {"ray", "torch", "deepspeed", "mlflow", "boto3"} <= set(PINNED)
    wrong = {name for name in set(allowed) & set(PINNED) if PINNED[name] not in allowed[name]}
    assert wrong == set()


def test_ray_in_the_image_is_the_ray_that_tests_run_on():
    assert PINNED["ray"] == version("ray")


def test_dockerignore_lets_in_what_the_file_copies_and_nothing_else():
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", TEXT, flags=re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    allowed = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert names == set(allowed)


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_services_are_read_only_without_rights_and_pinned(service):
    made = COMPOSE["services"][service]
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert re.search(r":[\w.${}:-]*\d", made["image"])
    assert ":latest" not in made["image"]


def test_mlflow_alone_listens_and_on_this_machine_unless_told():
    services = COMPOSE["services"]
    assert {name for name in services if "ports" in services[name]} == {"mlflow"}
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]


def test_passwords_have_no_default():
    text = (ROOT / "cluster/compose.yaml").read_text()
    passwords = re.findall(r"(?:PASSWORD|SECRET_ACCESS_KEY): (\S+)", text)
    assert set(passwords) == {"${POSTGRES_PASSWORD:?choose", "${S3_SECRET:?choose"}


def test_mlflow_knows_every_option_of_its_server():
    command = COMPOSE["services"]["mlflow"]["command"]
    assert command[:2] == ["mlflow", "server"]
    mlflow_command.commands["server"].make_context("server", list(command[2:]))
