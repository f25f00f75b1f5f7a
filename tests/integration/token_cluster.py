"""A Ray cluster for tests of jobs: token authentication on, a head that runs no work, and a node
that the autoscaler starts when a run asks for it (a process here, by Ray's own fake provider).

Its processes are those below one that we started, and these alone are stopped at the end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

from tests.waiting import BUSY_S, SOON_S

TOKEN = "7c" * 32
COMMANDS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class TokenCluster:
    """Where the cluster is, and the variables of a client that may talk to it."""

    address: str
    environment: Mapping[str, str]

    def run(
        self, *arguments: str, folder: Path, timeout_s: int = BUSY_S, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`mmtrain ARGUMENTS` as a user of this cluster types it in `folder`."""
        return subprocess.run(
            [sys.executable, "-m", "mmtrain", *arguments],
            cwd=folder, env={**self.environment, **environment}, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip


@contextmanager
def token_cluster(folder: Path, *, node_cpus: int) -> Iterator[TokenCluster]:
    """Starts a cluster and waits until it answers; stops what it started."""
    gcs, dashboard, agent, client = free_ports(4)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "MMTRAIN_NODES_WAIT_S": str(BUSY_S),
    }
    config = folder / "cluster.json"
    config.write_text(json.dumps(growing(node_cpus, gcs=f"127.0.0.1:{gcs}")))
    with ExitStack() as cleanup, (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [
                str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0",
                "--node-ip-address=127.0.0.1",
                f"--autoscaling-config={config}",
                f"--port={gcs}", f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                "--disable-usage-stats", f"--temp-dir={folder / 'ray'}",
                "--object-store-memory=100000000",
            ],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        cleanup.callback(stop_session, head)
        address = f"http://127.0.0.1:{dashboard}"
        wait_until_it_answers(address, head=head, log=folder / "head.log")
        yield TokenCluster(address, {**environment, "RAY_ADDRESS": address})


def growing(node_cpus: int, *, gcs: str) -> dict[str, object]:
    """A cluster that has a head alone, and one node more when it is asked for."""
    return {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 30,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode", "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": gcs,
            "disable_node_updaters": True,
        },
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        **{name: [] for name in COMMANDS},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "node": {
                "resources": {"CPU": node_cpus, "object_store_memory": 100_000_000},
                "node_config": {}, "min_workers": 0, "max_workers": 1,
            },
        },
    }  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, above those that Ray's workers take by default."""
    with ExitStack() as held:
        found: list[int] = []
        for port in range(20_000 + os.getpid() % 10_000, 32_000):
            tried = held.enter_context(socket.socket())
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                break
    return found


def wait_until_it_answers(address: str, *, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=SOON_S)
        except urllib.error.HTTPError:  # it is there, and wants the token
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {address} in {BUSY_S} s: {log.read_text()}")


def stop_session(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and every process below it or of its session."""
    if head.poll() is not None:
        return
    mine = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(mine, timeout=10)
    for process in left:
        process.kill()
    head.wait()
