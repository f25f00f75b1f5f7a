"""A server on Ray Serve: replicas of one app, each with all networks, behind one address.

On this machine a lone replica listens itself (Ray Serve's direct ingress): a request then takes
one hop in place of three, 1 ms in place of 8 (`tests/benchmarks/bench_serve.py`). Several replicas,
and a cluster at an address, are reached through the cluster's own proxies.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from mmtrain.cluster import cluster_of, reason
from mmtrain.process.environment import environment
from mmtrain.process.logs import hush
from mmtrain.process.termination import handlers_kept
from mmtrain.serving.config import ServingConfig
from mmtrain.serving.connections import CALLBACK
from mmtrain.serving.networks import ModelSource, ServingError, find_sources, load_networks

if TYPE_CHECKING:
    from fastapi import FastAPI

APP = "mmtrain"
_DEPLOYMENT = "replica"
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
_SPARE_REQUESTS = 64  # beyond the queue, so that our 429 comes before Ray Serve's 503


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where a server runs.

    Args:
        host: address to listen on.
        port: port to listen on.
        replicas: processes that answer, each with all models.
        cpus: of a replica.
        gpus: of a replica.
        address: Ray cluster; None: one on this machine, which ends with the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None

    @property
    def url(self) -> str:
        """What a browser here opens."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"

    @property
    def is_direct(self) -> bool:
        """Whether the replica itself listens."""
        return self.address is None and self.replicas == 1 and not ray.is_initialized()


@contextlib.contextmanager
def serving(
    sources: Sequence[ModelSource], *, config: ServingConfig, place: ServerPlace
) -> Generator[str]:
    """A server that answers inside the `with`; its address.

    On a cluster that is joined already, other applications of Ray Serve stay as they are.

    Raises:
        ServingError: the port is taken, the cluster is too small, or a replica does not start.
    """
    _check_port(place)
    settings = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK}
    with environment(settings | (_direct_ingress(place) if place.is_direct else {})):
        http = {"host": place.host, "port": _free_port() if place.is_direct else place.port}
        with cluster_of(place.replicas * place.cpus, address=place.address) as there:
            _check_resources(place, there)
            with _running(sources, config=config, place=place, http=http):
                yield place.url


def serve_forever(
    sources: Sequence[ModelSource], *, config: ServingConfig, place: ServerPlace
) -> None:
    """Serves until Ctrl-C or a SIGTERM.

    Raises:
        ServingError: see `serving`.
    """
    stopped = threading.Event()
    with handlers_kept():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        with serving(sources, config=config, place=place) as url:
            print(f"serving at {url}   page /   API /docs   Ctrl-C stops", flush=True)
            stopped.wait()
            print("stopping", flush=True)


class Served(BaseModel):
    """What a Ray Serve configuration says of the application, under `args`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(min_length=1, description="As `mmtrain serve` takes them.")
    tracking_uri: str | None = Field(None, description="MLflow URI of the registry.")
    config: ServingConfig = ServingConfig()


def application(args: Served) -> Any:
    """The app for `serve deploy` and a RayService (`mmtrain.serving.serve:application`).

    Its name must be `mmtrain`. The token that requests must bring is the variable MMTRAIN_TOKEN's.
    """
    config = args.config.model_copy(update={"token": _token() or args.config.token})
    return _bind(find_sources(args.models, tracking_uri=args.tracking_uri), config, ServerPlace())


def _token() -> SecretStr | None:
    token = os.environ.get("MMTRAIN_TOKEN")
    return SecretStr(token) if token else None


@contextlib.contextmanager
def _running(
    sources: Sequence[ModelSource],
    *,
    config: ServingConfig,
    place: ServerPlace,
    http: dict[str, Any],
) -> Generator[None]:
    """The app on a cluster; when it is taken away, requests that are being answered end first."""
    from ray import serve

    hush("ray.serve")
    try:
        serve.start(http_options=http, logging_config=_QUIET)
    except (RuntimeError, TimeoutError) as error:  # its processes are not up in time
        raise ServingError(
            f"Ray Serve does not start: {reason(error)}; free CPU and memory, then again"
        ) from error
    try:
        try:
            serve.run(_bind(sources, config, place), name=APP, route_prefix="/")
        except RuntimeError as error:
            raise ServingError(f"{error} {_reason()}; see the logs of Ray Serve") from None
        yield
    finally:
        serve.delete(APP)


def _bind(sources: Sequence[ModelSource], config: ServingConfig, place: ServerPlace) -> Any:
    """Ray Serve's application; `Any`, because its stubs are wrong."""
    from ray import serve

    replica: Any = serve.deployment(serve.ingress()(_replica_class()))
    return replica.options(
        name=_DEPLOYMENT,
        num_replicas=place.replicas,
        max_ongoing_requests=config.max_queue + _SPARE_REQUESTS,
        max_queued_requests=place.replicas * config.max_queue + _SPARE_REQUESTS,
        ray_actor_options={"num_cpus": place.cpus, "num_gpus": place.gpus},
        graceful_shutdown_timeout_s=5.0,
        logging_config=_QUIET,
    ).bind(tuple(sources), config)


def _replica_class() -> type:
    """The deployment's class; made here, so that Ray Serve is imported when a server starts."""

    class Replica:
        """One process with all networks."""

        def __init__(self, sources: Sequence[ModelSource], config: ServingConfig) -> None:
            self._networks, self._config = load_networks(sources), config

        def __serve_build_asgi_app__(self) -> "FastAPI":
            from mmtrain.serving.api import build_app

            app = build_app(self._networks, self._config, peers=_counts)
            self._meters = app.state.meters
            return app

        def counts(self) -> str:
            """This replica's counts, in Prometheus' text form."""
            text: str = self._meters.text()
            return text

    return Replica


async def _counts() -> list[str]:
    """Counts of all replicas."""
    from ray import serve

    handle = serve.get_deployment_handle(_DEPLOYMENT, APP)
    return list(await handle.broadcast("counts").results_async())


def _reason() -> str:
    """What the deployment says of its failure."""
    from ray import serve

    application = serve.status().applications.get(APP)
    messages = [of.message for of in application.deployments.values()] if application else []
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _check_resources(place: ServerPlace, there: Mapping[str, float]) -> None:
    """Refuses what would wait for ever.

    Raises:
        ServingError: the cluster has too few CPUs or GPUs.
    """
    for kind, each in (("CPU", place.cpus), ("GPU", place.gpus)):
        needed, has = place.replicas * each, there.get(kind, 0.0)
        if needed > has:
            raise ServingError(
                f"{place.replicas} replicas of {each:g} {kind} need {needed:g}, the cluster has "
                f"{has:g}; lower --replicas or --{kind.lower()}s"
            )


def _check_port(place: ServerPlace) -> None:
    """Refuses a port that another program has; of a cluster at an address, nothing is known."""
    if place.address:
        return
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place.host, place.port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {place.host} port {place.port}: {error.strerror}; "
                "give another --host or --port"
            ) from None


def _free_port() -> int:
    """For the proxy that nobody uses where the replica itself listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _direct_ingress(place: ServerPlace) -> dict[str, str]:
    """Ray Serve's settings by which the one replica listens on the port, and no other does."""
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(place.port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(place.port + 1),  # exclusive
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a replica that is started again takes the same port
    }
