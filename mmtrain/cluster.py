"""The one place that joins or starts Ray; when Ray is not there or dies, one line says why.

A cluster that was started here ends with the command, however that ends: in order where it is
interrupted or terminated; where it is killed, the kernel kills Ray's processes with their parent.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError, RayTaskError

from mmtrain.process.environment import environment
from mmtrain.process.termination import handlers_kept, interrupt_on_sigterm, note_sigterm
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180"}  # for slow machines
_MAX_REASON = 300  # characters of another program's message that are shown


class ClusterError(MMTrainError):
    """Ray does not start, does not answer, or died."""


@contextmanager
def cluster_of(
    num_cpus: float, *, num_gpus: int = 0, address: str | None = None
) -> Generator[Mapping[str, float]]:
    """The Ray cluster at `address`, one already joined, or a new one; yields its resources.

    A new one has so many logical CPUs and one more, whatever the machine has: what asks for them
    mostly waits, and fewer than are asked for would hang. One at an address that grows is asked for
    what is needed and waited for.

    Args:
        num_cpus: logical CPUs that will be in use at once.
        num_gpus: GPUs, likewise.
        address: as `ray.init` takes it; None: one on this machine, which ends with the context.

    Raises:
        ClusterError: Ray does not start, no cluster answers, or one of its processes died.
    """
    joined = ray.is_initialized()
    with environment(_SETTINGS), handlers_kept():
        if not joined:
            _start(math.ceil(num_cpus) + 1, address=address)
        try:
            if address:
                _wait_for_nodes(num_cpus=math.ceil(num_cpus), num_gpus=num_gpus)
            yield ray.cluster_resources()
        except RayTaskError as error:
            if isinstance(error.cause, MMTrainError):
                raise error.cause from None
            raise
        except RayError as error:
            raise ClusterError(
                f"Ray lost a process: {reason(error)}. What was written whole stands; the same "
                "command goes on"
            ) from error
        finally:
            if not joined:
                ray.shutdown()


def read_board(board: Any) -> Any:
    """What an actor that shows progress holds; None once it has died: something else says why.

    Args:
        board: actor with a method `read`; `Any`, because Ray types neither.
    """
    try:
        return ray.get(board.read.remote())
    except RayError:
        return None


def wait_for_board(board: Any) -> None:
    """Until the actor has taken what this process told it, or has died; 10 seconds at most."""
    with suppress(RayError):
        ray.get(board.is_there.remote(), timeout=10)


def reason(error: object) -> str:
    """The last line of what another program says of an error, which has its cause."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "worker process has died" in lines[-1]:  # Ray goes on for three lines about what may be
        return "its process was killed or crashed, as where memory runs out"
    return lines[-1].strip()[:_MAX_REASON].rstrip(".")


def _start(num_cpus: int, *, address: str | None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # Ray 2.60 prints each death of a process to stdout, whatever `log_to_driver` says: two lines of
    # ids, and in the way of --json. What a death comes to, the command itself says.
    ray_worker.print_to_stdstream = lambda data, **_: logger.info("%s", data)
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else max(num_cpus, os.cpu_count() or 1),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except SystemExit:  # Ray's own answer to a SIGTERM while it starts
        note_sigterm()
        raise KeyboardInterrupt from None
    except Exception as error:  # of that very class, when its processes are not up in time
        if address:
            raise ClusterError(
                f"no Ray cluster answers at {address}: {reason(error)}; start one with `ray start "
                "--head`, or leave out --address"
            ) from error
        logs = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/session_latest/logs"
        raise ClusterError(
            f"Ray does not start: {reason(error)}. Its logs are in {logs}; free CPU, memory and "
            "disk, then give the command again"
        ) from error
    if callable(before):
        signal.signal(signal.SIGTERM, before)
    else:
        interrupt_on_sigterm()


def _wait_for_nodes(*, num_cpus: int, num_gpus: int) -> None:
    """Asks a cluster that grows for so many CPUs and GPUs, and waits until they are there.

    How long, a cluster that grows says itself by the variable MMTRAIN_NODES_WAIT_S, in seconds;
    where it is not set, and on a cluster that has enough, nothing is asked.
    """
    deadline = time.monotonic() + float(os.environ.get("MMTRAIN_NODES_WAIT_S", "0"))
    bundles = [{"CPU": 1.0, **({"GPU": 1.0} if i < num_gpus else {})} for i in range(num_cpus)]
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    asked = False
    while time.monotonic() < deadline:
        has = ray.cluster_resources()
        if all(has.get(name, 0) >= count for name, count in wanted.items()):
            break
        if not asked:
            logger.info("waiting for nodes: %s wanted, %s there", wanted, has)
            request_resources(bundles=bundles)
            asked = True
        time.sleep(2)
    if asked:
        request_resources(bundles=[])  # the run holds what it needs; idle nodes may go again
