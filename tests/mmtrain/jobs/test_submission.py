"""What is sent to a cluster, and what submitting again comes to."""

import shlex
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import typer
from ray.job_submission import JobDetails, JobStatus, JobType

from mmtrain.cli import app
from mmtrain.jobs import submission as module
from mmtrain.jobs.client import Cluster, dashboard_url, exit_code
from mmtrain.jobs.submission import (
    Attempt,
    Decision,
    JobError,
    Submission,
    decide,
    read_submission,
    stage_code,
)
from mmtrain.recipe import load_recipe
from pipelines.errors import MMTrainError

RECIPE_FILE = """from mmtrain.recipe import load_recipe


def mine():
    return load_recipe("debug").with_(name="mine")
"""


def submitted(arguments, *, root):
    commands = typer.main.get_command(app).commands
    return read_submission(arguments, root=root, commands=commands)


def submission(**changes) -> Submission:
    fields = {
        "run": "train-debug-0", "arguments": ("train", "debug"), "files": {}, "root": "/data",
        "resumes": True,
    }  # fmt: skip
    return Submission(**{**fields, **changes})


def attempt(number: int, status: str, *, of: Submission) -> Attempt:
    name = of.run if number == 1 else f"{of.run}-{number}"
    return Attempt(name, of.run, of.digest, status)


@pytest.mark.parametrize(
    ("statuses", "decision"),
    [
        ([], Decision("start", "train-debug-0")),
        (["PENDING"], Decision("attach", "train-debug-0")),
        (["RUNNING"], Decision("attach", "train-debug-0")),
        (["FAILED"], Decision("start", "train-debug-0-2")),
        (["STOPPED", "RUNNING"], Decision("attach", "train-debug-0-2")),
        (["STOPPED", "FAILED"], Decision("start", "train-debug-0-3")),
        (["FAILED", "SUCCEEDED"], Decision("done", "train-debug-0-2")),
    ],
)
def test_a_run_is_started_attached_to_or_done(statuses, decision):
    mine = submission()
    attempts = [attempt(number, status, of=mine) for number, status in enumerate(statuses, 1)]
    assert decide(mine, attempts[::-1]) == decision


def test_the_tenth_attempt_is_newer_than_the_ninth():
    mine = submission()
    attempts = [attempt(number, "FAILED", of=mine) for number in range(1, 11)]
    assert decide(mine, attempts) == Decision("start", "train-debug-0-11")


def test_a_run_that_ended_well_goes_on_with_other_arguments():
    longer = submission(arguments=("train", "debug", "--set", "num_steps=9"))
    ended = [attempt(1, "SUCCEEDED", of=submission())]
    assert decide(longer, ended) == Decision("start", "train-debug-0-2")


def test_what_has_nothing_to_resume_is_run_again():
    build = submission(arguments=("build", "debug"), resumes=False)
    assert decide(build, [attempt(1, "SUCCEEDED", of=build)]).act == "start"


def test_two_sets_of_arguments_for_one_run_are_refused_while_it_runs():
    other = submission(arguments=("train", "debug", "--set", "seed=1"))
    with pytest.raises(JobError, match="mmtrain jobs stop train-debug-0`"):
        decide(other, [attempt(1, "RUNNING", of=submission())])


def test_the_name_follows_recipe_and_folder_and_nothing_else():
    def name(*arguments: str, root: str = "/data") -> str:
        return submitted(arguments, root=root).run

    mine = name("train", "debug")
    assert mine.startswith("train-debug-")
    assert mine == name("train", "debug", "--set", "num_steps=7")
    assert mine == name("train", "debug", "--out", "runs/debug")
    assert mine == name("train", "debug", "--out=/data/runs/debug")
    assert mine != name("train", "debug", "--out", "runs/other")
    assert mine != name("train", "debug", root="/other")
    assert mine != name("build", "debug")


def test_sweeps_and_predictions_are_named_by_what_they_leave():
    sweeps = [
        submitted(["tune", "debug", *sweep], root="/data").run
        for sweep in ((), ("--sweep", "learning_rate"), ("--sweep", "batch_size"))
    ]
    assert sweeps[0] == sweeps[1] != sweeps[2]
    asked = ["predict", "runs/debug", "--input", "s3://a/b", "--output", "answers/b"]
    assert submitted(asked, root="/data").run.startswith("predict-b-")


def test_entrypoint_runs_the_command_in_the_root_and_goes_on_with_what_is_there():
    made = submitted(["train", "debug", "--set", "name=a b"], root="/data/my runs")
    enter, command = made.entrypoint.split("; exec ")
    assert enter.startswith("code=$PWD; cd '/data/my runs' 2>/dev/null || ")
    assert shlex.split(command) == [
        "python", "-P", "-m", "mmtrain", "train", "debug", "--set", "name=a b",
        "--address", "auto", "--resume",
    ]  # fmt: skip
    assert "--resume" not in submitted(["build", "debug"], root="/data").entrypoint


def test_nothing_in_an_argument_reaches_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "$(touch a)`touch b`; touch c' \" #"
    made = submitted(["train", "debug", "--out", evil], root=str(tmp_path))
    harmless = made.entrypoint.replace("exec python -P -m mmtrain", "exec printf '%s\\n'")
    printed = subprocess.run(["sh", "-c", harmless], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == [
        "train", "debug", "--out", evil, "--address", "auto", "--resume",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["", ":mine"])
def test_files_that_a_command_names_go_along(tmp_path, monkeypatch, function):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sub" / ("my runs.py" if function else "best.json")
    path.parent.mkdir()
    path.write_text(RECIPE_FILE if function else module_recipe_json())
    made = submitted(["train", f"sub/{path.name}{function}"], root=str(tmp_path))
    code = stage_code(tmp_path / "code", made)
    assert (code / path.name).read_bytes() == path.read_bytes()
    harmless = made.entrypoint.replace("exec python -P -m mmtrain", "exec printf '%s\\n'")
    printed = subprocess.run(
        ["sh", "-c", harmless], capture_output=True, text=True, check=True, cwd=code
    )
    assert printed.stdout.splitlines()[1] == f"{code}/{path.name}{function}"


def test_a_loss_that_a_setting_names_goes_along_and_is_found_where_the_code_is(
    tmp_path, monkeypatch
):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder in (here / "mine", root):
        folder.mkdir(parents=True)
    (here / "mine" / "losses.py").write_text("from mmtrain.losses import cross_entropy as soft\n")
    monkeypatch.chdir(here)
    setting = "tasks.parsing.loss=mine/losses.py:soft"
    sent = submitted(["train", "debug", "--set", setting], root=str(root))
    code = stage_code(tmp_path / "code", sent)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(code)
    recipe = load_recipe("debug", [setting])
    assert recipe.tasks["parsing"].loss == f"{code}/mine/losses.py:soft"


def module_recipe_json() -> str:
    return load_recipe("debug").model_dump_json()


def test_another_content_of_a_file_is_another_digest(tmp_path):
    path = tmp_path / "my_runs.py"
    path.write_text(RECIPE_FILE)
    before = submitted(["train", f"{path}:mine"], root="/data")
    digest = before.digest
    path.write_text(RECIPE_FILE + "\n# changed\n")
    after = submitted(["train", f"{path}:mine"], root="/data")
    assert before.run == after.run
    assert digest != after.digest


def test_staged_code_is_the_two_packages_without_caches(tmp_path):
    code = stage_code(tmp_path / "code", submission())
    assert {path.name for path in code.iterdir()} == {"mmtrain", "pipelines"}
    assert (code / "mmtrain" / "cli.py").exists()
    assert not list(code.rglob("__pycache__"))


def test_too_much_to_send_is_refused_by_name(tmp_path, monkeypatch):
    large = tmp_path / "large.json"
    large.write_bytes(b"0" * 9_000)
    monkeypatch.setattr(module, "PACKAGES", ())
    monkeypatch.setattr(module, "MAX_BYTES", 8_000)
    (tmp_path / "code").mkdir()
    with pytest.raises(JobError, match=r"the largest is large\.json: put it on the cluster's"):
        stage_code(tmp_path / "code", submission(files={"large.json": large}))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which command"),
        (["evaluate", "runs/a"], "evaluate runs on this machine; a cluster runs: build, train"),
        (["trian", "debug"], "nearest: train"),
        (["train", "quikstart"], "quickstart"),
        (["train", "debug", "--sett", "a=1"], "train: No such option: --sett"),
        (["train", "debug", "--set", "num_step=1"], "num_steps"),
        (["train"], "give the folder that it writes"),
        (["serve", "runs/a"], "serve runs on this machine"),
        (["submit", "train"], "submit runs on this machine"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(arguments, says):
    with pytest.raises(MMTrainError) as refused:
        submitted(arguments, root="/data")
    assert says in str(refused.value)


def test_a_root_is_a_whole_path():
    with pytest.raises(JobError, match="whole path on the cluster"):
        submitted(["train", "debug"], root="data")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (None, "http://127.0.0.1:8265"),
        ("auto", "http://127.0.0.1:8265"),
        ("head:8265", "http://head:8265"),
        ("https://ray.example.org/", "https://ray.example.org"),
    ],
)
def test_address_of_the_dashboard(monkeypatch, given, url):
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    assert dashboard_url(given) == url


def test_a_given_address_wins_over_rays_variables(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert dashboard_url(None) == "http://other:8265"
    with pytest.raises(JobError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9;"):
        Cluster("127.0.0.1:9")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "ftp://head:1"])
def test_another_kind_of_address_is_refused(address):
    with pytest.raises(JobError, match="give the dashboard's"):
        dashboard_url(address)


def test_a_host_that_takes_the_call_and_never_answers_is_left_in_bounded_time(monkeypatch):
    monkeypatch.setattr("mmtrain.jobs.client.REQUEST_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(JobError, match="no Ray cluster answers"):
            Cluster(f"127.0.0.1:{port}")


class LostOnce:
    """Ray's client for a job whose log is cut off once: the connection is lost."""

    def __init__(self, _: str) -> None:
        self.logs = ["first\n", "first\nsec", "first\nsecond\nthird\n"]

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        log = self.logs.pop(0)
        for start in range(0, len(log), 4):
            yield log[start : start + 4]
        if self.logs:
            raise RuntimeError("WebSocket closed")

    def get_job_info(self, job_id: str) -> JobDetails:
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=job_id, status=JobStatus.FAILED,
            entrypoint="x", driver_exit_code=-9,
        )  # fmt: skip


def test_a_log_is_handed_on_once_though_the_connection_is_lost(monkeypatch):
    monkeypatch.setattr("mmtrain.jobs.client._Client", LostOnce)
    monkeypatch.setattr("mmtrain.jobs.client.time.sleep", lambda _: None)
    written: list[str] = []
    job = Cluster("127.0.0.1:1").follow("job", write=written.append)
    assert "".join(written) == "first\nsecond\nthird\n"
    assert exit_code(job) == 128 + 9


def test_module_paths_are_the_code_that_runs_now():
    assert [package.name for package in module.PACKAGES] == ["mmtrain", "pipelines"]
    assert all(isinstance(package, Path) and package.is_dir() for package in module.PACKAGES)
