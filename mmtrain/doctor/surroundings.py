"""Checks of what a run talks to: MLflow, storage, a Ray cluster. Over HTTP and fsspec alone."""

import contextlib
import json
import os
import socket
import urllib.error
import urllib.request
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from mmtrain.doctor.findings import Check, Finding, Subject
from mmtrain.doctor.machine import check_disk

DASHBOARD_PORT = 8265


def mlflow_server(subject: Subject) -> list[Finding]:
    """The MLflow that runs would be written to: a server answers, a file can be written."""
    uri = subject.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        return [Finding("mlflow", "ok", "none given: each run has its own file, mlruns.db")]
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return [_tracking_file(uri)]
    remedy = "start it (mlflow server --host 0.0.0.0), or give another --tracking; runs wait for it"
    try:
        answer = fetch(f"{uri.rstrip('/')}/version", timeout_s=subject.timeout_s / 2)
    except OSError as error:
        return [Finding("mlflow", "wrong", f"{uri}: {reason(error)}", remedy)]
    version, own = answer.decode(errors="replace").strip()[:40], metadata.version("mlflow")
    if version.split(".")[0] == own.split(".")[0]:
        return [Finding("mlflow", "ok", f"{uri}, {version}")]
    remedy = f"put mlflow {own.split('.')[0]}.x on the server"
    return [Finding("mlflow", "warning", f"{uri} has {version}, this machine {own}", remedy)]


def _tracking_file(uri: str) -> Finding:
    scheme, _, rest = uri.partition("://")
    if scheme in ("sqlite", "file") or "://" not in uri:
        path = Path(rest.removeprefix("/") if scheme == "sqlite" else rest or uri)
        path = Path("/") / path if rest.startswith("//") or scheme == "file" else path
        finding = check_disk("mlflow", path.parent, min_free_bytes=10**8)
        return finding if finding.level != "ok" else Finding("mlflow", "ok", f"file {path}")
    host, port = urlsplit(uri).hostname, urlsplit(uri).port
    if host is None or port is None:
        return Finding("mlflow", "warning", f"{uri}: not examined", "open it with `mlflow ui`")
    with socket.create_connection((host, port), timeout=5):
        return Finding("mlflow", "ok", f"{scheme} at {host}:{port} answers")


def storage(subject: Subject) -> list[Finding]:
    """The storage that all machines see: a small file is written, read and removed."""
    if subject.storage is None:
        return [Finding("storage", "ok", "none given: runs are kept in their folders")]
    name = f"{subject.storage.rstrip('/')}/.mmtrain-doctor-{uuid.uuid4().hex}"
    remedy = "see the URI, the credentials in the environment, and whether it may be written"
    try:
        filesystem, path = fsspec.core.url_to_fs(name)
        filesystem.pipe_file(path, b"mmtrain")
        try:
            whole = filesystem.cat_file(path) == b"mmtrain"
        finally:
            filesystem.rm_file(path)
    except ImportError as error:
        return [Finding("storage", "wrong", str(error), "pip install the package that it names")]
    except Exception as error:  # each store raises errors of its own
        return [Finding("storage", "wrong", f"{subject.storage}: {reason(error)}", remedy)]
    if not whole:
        return [Finding("storage", "wrong", "gives back other bytes than were written", remedy)]
    return [Finding("storage", "ok", f"{subject.storage}: written, read, removed")]


def ray_cluster(subject: Subject) -> list[Finding]:
    """The cluster answers and has the Ray and the Python that are installed here."""
    if subject.address is None:
        return [Finding("ray cluster", "ok", "none given: runs start one on this machine")]
    url = dashboard_url(subject.address)
    remedy = "start it (ray start --head), open its dashboard's port, or give another --address"
    try:
        answer: Any = json.loads(fetch(f"{url}/api/version", timeout_s=subject.timeout_s / 2))
    except (OSError, ValueError) as error:
        return [Finding("ray cluster", "wrong", f"{url}: {reason(error)}", remedy)]
    version = str(answer.get("ray_version", "")) if isinstance(answer, dict) else ""
    own = metadata.version("ray")
    if version != own:
        remedy = f"pip install 'ray=={version}', or put {own} on the cluster: they must be the same"
        fact = f"{url} has Ray {version or 'unknown'}, this machine {own}"
        return [Finding("ray cluster", "wrong", fact, remedy)]
    return [Finding("ray cluster", "ok", f"{url}, Ray {version}")]


def dashboard_url(address: str) -> str:
    """Where a cluster's dashboard is: of "auto", this machine; of ray://HOST, its usual port."""
    if address == "auto":
        return f"http://127.0.0.1:{DASHBOARD_PORT}"
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    host = address.removeprefix("ray://").rsplit(":", 1)[0]
    return f"http://{host}:{DASHBOARD_PORT}"


def fetch(url: str, *, timeout_s: float) -> bytes:
    """The first bytes that a URL answers with, with Ray's token where one is set.

    Raises:
        OSError: it does not, or with an error.
    """
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return answer.read(65536)


def _token() -> str | None:
    """Ray's token, from the environment or its file."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    with contextlib.suppress(OSError):
        path = os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")
        return Path(path).read_text().strip() or None
    return None


def reason(error: BaseException) -> str:
    """One line of what went wrong."""
    if isinstance(error, urllib.error.HTTPError):
        token = "; set RAY_AUTH_TOKEN" if error.code in (401, 403) else ""
        return f"HTTP {error.code} {error.reason}{token}"
    inner: Any = getattr(error, "reason", None) or error
    return f"{type(inner).__name__}: {inner}".splitlines()[0][:160]


CHECKS: dict[str, Check] = {
    "mlflow": mlflow_server,
    "storage": storage,
    "ray cluster": ray_cluster,
}
