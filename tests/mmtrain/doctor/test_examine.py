import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata

import pytest
from typer.testing import CliRunner

from mmtrain.cli import app
from mmtrain.doctor import machine, software, surroundings
from mmtrain.doctor.examine import all_checks, examine, is_well
from mmtrain.doctor.findings import Finding, Subject
from tests.waiting import BUSY_S, SOON_S


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody who takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def answers():
    """A server that says the same to everybody."""
    servers = []

    def start(text: str, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def subject(tmp_path, **fields: object) -> Subject:
    return Subject(folder=tmp_path, **{"timeout_s": BUSY_S, **fields})  # type: ignore[arg-type]


def test_an_unreachable_mlflow_is_wrong_with_its_remedy(tmp_path, closed_port):
    uri = f"http://127.0.0.1:{closed_port}"
    (found,) = surroundings.mlflow_server(subject(tmp_path, tracking=uri))
    assert found.level == "wrong"
    assert "refused" in found.fact
    assert "mlflow server" in found.remedy


def test_a_server_that_hangs_does_not_hang_the_doctor(tmp_path, silent_port):
    asked = subject(tmp_path, tracking=f"http://127.0.0.1:{silent_port}", timeout_s=1.0)
    began = time.monotonic()
    (found,) = examine(asked, {"mlflow": surroundings.mlflow_server})
    assert time.monotonic() - began < SOON_S
    assert found.level == "wrong"


def test_a_check_that_never_ends_is_a_finding(tmp_path):
    gate = threading.Event()

    def endless(_: Subject) -> list[Finding]:
        gate.wait(BUSY_S)
        return []

    quick = {"quick": lambda _: [Finding("quick", "ok", "there")]}
    found = examine(subject(tmp_path, timeout_s=2), {"endless": endless, **quick})
    gate.set()
    assert [(one.check, one.level) for one in found] == [("endless", "wrong"), ("quick", "ok")]
    assert "no answer within 2 s" in found[0].fact


def test_a_check_that_breaks_is_a_finding(tmp_path):
    def broken(_: Subject) -> list[Finding]:
        raise RuntimeError("no such thing")

    (found,) = examine(subject(tmp_path), {"broken": broken})
    assert (found.level, found.fact) == ("wrong", "RuntimeError: no such thing")
    assert not is_well([found])


def test_mlflow_of_another_major_version_is_a_warning(tmp_path, answers):
    (found,) = surroundings.mlflow_server(subject(tmp_path, tracking=answers("2.9.1")))
    assert (found.level, found.remedy[:11]) == ("warning", "put mlflow ")
    (same,) = surroundings.mlflow_server(
        subject(tmp_path, tracking=answers(metadata.version("mlflow")))
    )
    assert same.level == "ok"


def test_tracking_file_must_be_writable(tmp_path):
    (found,) = surroundings.mlflow_server(
        subject(tmp_path, tracking=f"sqlite:///{tmp_path}/mlruns.db")
    )
    assert (found.level, found.fact) == ("ok", f"file {tmp_path}/mlruns.db")


def test_ray_of_another_version_is_wrong_and_the_remedy_names_it(tmp_path, answers):
    url = answers(json.dumps({"ray_version": "2.9.0"}))
    (found,) = surroundings.ray_cluster(subject(tmp_path, address=url))
    assert found.level == "wrong"
    assert "ray==2.9.0" in found.remedy


def test_ray_of_the_same_version_is_ok(tmp_path, answers):
    url = answers(json.dumps({"ray_version": metadata.version("ray")}))
    (found,) = surroundings.ray_cluster(subject(tmp_path, address=url))
    assert found.level == "ok"


@pytest.mark.parametrize("said", ["<html>", "[]", "{}"])
def test_what_is_no_dashboard_is_wrong(tmp_path, answers, said):
    (found,) = surroundings.ray_cluster(subject(tmp_path, address=answers(said)))
    assert found.level == "wrong"


def test_a_cluster_that_is_not_there_is_wrong(tmp_path, closed_port):
    asked = subject(tmp_path, address=f"http://127.0.0.1:{closed_port}")
    (found,) = surroundings.ray_cluster(asked)
    assert (found.level, "ray start --head" in found.remedy) == ("wrong", True)


def test_a_refused_token_is_told(tmp_path, answers):
    (found,) = surroundings.ray_cluster(subject(tmp_path, address=answers("no", 401)))
    assert "401" in found.fact


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("auto", "http://127.0.0.1:8265"),
        ("ray://head:10001", "http://head:8265"),
        ("head:6379", "http://head:8265"),
        ("https://ray.example/", "https://ray.example"),
    ],
)
def test_dashboard_of_an_address(address, url):
    assert surroundings.dashboard_url(address) == url


def test_storage_is_written_read_and_removed(tmp_path):
    (found,) = surroundings.storage(subject(tmp_path, storage=f"file://{tmp_path}"))
    assert found.level == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "file:///proc/nosuch/x"])
def test_storage_that_cannot_be_written_is_wrong(tmp_path, uri):
    (found,) = surroundings.storage(subject(tmp_path, storage=uri))
    assert (found.level, bool(found.remedy)) == ("wrong", True)


def test_a_full_disk_is_wrong(tmp_path):
    found = machine.check_disk("disk", tmp_path / "new", min_free_bytes=10**18)
    assert (found.level, "free some" in found.remedy) == ("wrong", True)
    assert machine.check_disk("disk", tmp_path / "new", min_free_bytes=1).level == "ok"


def test_a_taken_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert machine.check_port("serve", port).level == "warning"
    assert machine.check_port("serve", port).level == "ok"


def test_an_old_version_is_wrong_and_its_remedy_installs():
    old, new = software.check_packages(["numpy>=999,<1000", "numpy>=1"])
    assert (old.level, old.remedy) == ("wrong", "pip install 'numpy<1000,>=999'")
    assert new.level == "ok"


def test_a_missing_package_is_wrong_and_extras_are_left_out():
    (found,) = software.check_packages(["nosuchpackage>=1", 'numpy>=999; extra == "dev"'])
    assert (found.check, found.fact) == ("nosuchpackage", "not installed")


def test_without_a_compiler_the_remedy_names_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = software.op_builds(subject(tmp_path))
    assert (found.level, "g++" in found.remedy) == ("warning", True)


def test_shared_memory_below_the_object_store_is_a_warning():
    found = machine.check_shared_memory(64e6, store_bytes=2.5e9)
    assert (found.level, found.remedy) == ("warning", "start the container with --shm-size=3g")


@pytest.mark.parametrize(
    ("soft", "hard", "remedy"),
    [
        (1024, 1048576, "ulimit -n 65536"),
        (1024, 1024, "raise it in /etc/security/limits.conf"),
        (65536, 65536, ""),
        (-1, -1, ""),
    ],
)
def test_open_files(soft, hard, remedy):
    assert machine.check_open_files(soft, hard).remedy == remedy


def test_a_container_s_processors_are_read(tmp_path):
    assert machine.cgroup_cpus(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cgroup_cpus(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_cpus(tmp_path) is None


def test_every_check_of_this_machine_says_something(tmp_path):
    found = examine(subject(tmp_path, timeout_s=BUSY_S), all_checks())
    assert {"python", "ray", "torch", "deepspeed", "mlflow", "cpu", "/dev/shm", "storage"} <= {
        one.check for one in found
    }
    assert all(one.remedy for one in found if one.level != "ok")


def test_the_command_ends_with_1_where_something_is_wrong(tmp_path, closed_port):
    asked = ["doctor", "--json", "--folder", str(tmp_path), "--min-free-gb", "0"]
    asked += ["--address", f"http://127.0.0.1:{closed_port}"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    levels = {one["check"]: one["level"] for one in json.loads(result.output)}
    assert levels["ray cluster"] == "wrong"
