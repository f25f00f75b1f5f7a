"""`mmtrain serve` against `mlflow models serve` of the same model, over HTTP on this machine.

A quickstart-like model answers one text a request: ours with batching and without, and the same
bundle registered as a version and served by MLflow in this environment. Requests a second and
the times of requests, of 1, 8 and 32 clients that ask again as soon as they are answered.

    python tests/benchmarks/bench_serve.py [--model RUN --task TASK --text TEXT] [--seconds 4]
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))
from mmtrain.bundle import find_bundle
from mmtrain.registry.register import register
from mmtrain.serving.config import ServingConfig
from mmtrain.serving.networks import ModelSource
from mmtrain.serving.serve import ServerPlace, serving
from tests.mmtrain.example_bundle import example_bundle

CLIENTS = (1, 8, 32)
START_S = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is asked again and again."""

    url: str
    body: dict


@dataclass(frozen=True, slots=True)
class Measured:
    """Requests a second, and times of requests in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def ask(session: aiohttp.ClientSession, asked: Asked, *, until_s: float) -> list[float]:
    times = []
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        async with session.post(asked.url, json=asked.body) as answer:
            await answer.read()
            assert answer.status == 200, await answer.text()
        times.append(time.perf_counter() - began_s)
    return times


async def load(asked: Asked, *, clients: int, seconds: float) -> Measured:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(ask(session, asked, until_s=0) for _ in range(clients)))
        began_s = time.perf_counter()
        each = await asyncio.gather(
            *(ask(session, asked, until_s=began_s + seconds) for _ in range(clients))
        )
        passed_s = time.perf_counter() - began_s
    times = sorted(1e3 * value for of in each for value in of)
    return Measured(
        len(times) / passed_s, statistics.median(times), times[int(0.99 * (len(times) - 1))]
    )


def measure(asked: Asked, *, seconds: float) -> dict[int, Measured]:
    asyncio.run(load(asked, clients=8, seconds=1.0))  # warms up
    return {
        clients: asyncio.run(load(asked, clients=clients, seconds=seconds)) for clients in CLIENTS
    }


@contextlib.contextmanager
def ours(bundle: Path, *, max_batch: int, task: str, text: str) -> Iterator[Asked]:
    source = ModelSource(str(bundle.resolve()), None, named=True)
    place = ServerPlace(port=free_port())
    with serving([source], config=ServingConfig(max_batch=max_batch), place=place) as url:
        yield Asked(f"{url}/v1/predict", {"task": task, "input": text})


@contextlib.contextmanager
def mlflows(bundle: Path, *, folder: Path, task: str, text: str) -> Iterator[Asked]:
    uri = f"sqlite:///{folder / 'mlruns.db'}"
    version = register(bundle, name="served", tracking_uri=uri)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", version.uri, "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PATH": path}  # it calls uvicorn
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", process, log=folder / "mlflow.log")
            row = {"dataframe_records": [{"task": task, "input": text}]}
            yield Asked(f"http://127.0.0.1:{port}/invocations", row)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


def wait_for(url: str, process: subprocess.Popen, *, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"{url} does not answer: {log.read_text()[-1000:]}")


def report(
    name: str, *, ours: Sequence[Measured], peer: Sequence[Measured], field: str, unit: str
) -> None:
    values = [statistics.median(getattr(one, field) for one in of) for of in (ours, peer)]
    better = "higher" if field == "per_s" else "lower"
    line = {
        "name": name,
        "ours": round(values[0], 2),
        "peer": round(values[1], 2),
        "ratio": round(values[0] / values[1], 3),
        "unit": unit,
        "better": better,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Prints lines of requests a second and of times for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="Run or bundle; default: a small untrained one.")
    parser.add_argument("--task", default="names")
    parser.add_argument("--text", default="Germany")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = chosen.model or example_bundle(folder / "bundle")
        bundle = find_bundle(model)
        what = {"task": chosen.task, "text": chosen.text}
        found: dict[str, list[dict[int, Measured]]] = {"batched": [], "alone": [], "mlflow": []}
        for repeat in range(chosen.repeats):
            own = folder / str(repeat)
            own.mkdir()
            with mlflows(bundle, folder=own, **what) as asked:
                found["mlflow"].append(measure(asked, seconds=chosen.seconds))
            for name, max_batch in (("batched", 32), ("alone", 1)):
                with ours(bundle, max_batch=max_batch, **what) as asked:
                    found[name].append(measure(asked, seconds=chosen.seconds))
    for clients in CLIENTS:
        rows = {name: [one[clients] for one in of] for name, of in found.items()}
        for peer in ("mlflow", "alone"):
            shown = {"mlflow": "mlflow_models_serve", "alone": "no_batching"}[peer]
            for field, unit in (("per_s", "requests/s"), ("p50_ms", "ms"), ("p99_ms", "ms")):
                report(
                    f"serve_{field}_{clients}_clients_against_{shown}",
                    ours=rows["batched"],
                    peer=rows[peer],
                    field=field,
                    unit=unit,
                )


if __name__ == "__main__":
    main()
