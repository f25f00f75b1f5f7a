"""Checks of the machine: processors, memory, shared memory, disk, open files, ports."""

import contextlib
import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path

from mmtrain.doctor.findings import Check, Finding, Subject

MIN_OPEN_FILES = 4096  # Ray's processes, sockets and shards
MIN_MEMORY = 2 * 10**9  # of a driver, a worker and a reader
OBJECT_STORE_SHARE = 0.3  # of memory: Ray's default
OBJECT_STORE_MOST = 200 * 10**9  # likewise
PORTS = {"ray": 6379, "ray dashboard": 8265, "ray client": 10001, "serve": 8000}
CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")


def processors(subject: Subject) -> list[Finding]:
    """Cores, and what of them a container may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    allowed = cgroup_cpus(CGROUP)
    fact = f"{cores} cores" + ("" if allowed is None else f", {allowed:g} allowed by the container")
    if min(cores or 1, allowed or cores or 1) < 2:
        remedy = "use --set num_workers=1, or give the container more"
        return [Finding("cpu", "warning", fact, remedy)]
    if allowed is not None and allowed < (cores or 1):
        remedy = f"export OMP_NUM_THREADS={max(1, int(allowed))}: threads count all cores"
        return [Finding("cpu", "warning", fact, remedy)]
    return [Finding("cpu", "ok", fact)]


def cgroup_cpus(folder: Path) -> float | None:
    """Processors that a container may use at once; None: all."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    return None


def memory(subject: Subject) -> list[Finding]:
    """Memory that is free, within the container's bound."""
    free, total = memory_bytes()
    fact = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < MIN_MEMORY:
        remedy = f"free some: a run needs {MIN_MEMORY / 1e9:g} GB and more, see `mmtrain plan`"
        return [Finding("memory", "warning", fact, remedy)]
    return [Finding("memory", "ok", fact)]


def memory_bytes() -> tuple[int, int]:
    """Free and all, of the machine or of the container where that has less."""
    facts: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts[name] = int(value.split()[0]) * 1024
    free, total = facts["MemAvailable"], facts["MemTotal"]
    with contextlib.suppress(OSError, ValueError):
        bound = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        if bound < total:
            return min(free, bound - used), bound
    return free, total


def shared_memory(subject: Subject) -> list[Finding]:
    """Shared memory against Ray's object store, which else lies on the disk and is slow."""
    store = min(OBJECT_STORE_SHARE * memory_bytes()[1], OBJECT_STORE_MOST)
    return [check_shared_memory(shutil.disk_usage(SHARED).free, store_bytes=store)]


def check_shared_memory(free_bytes: float, *, store_bytes: float) -> Finding:
    """Free shared memory against the size of the object store."""
    fact = f"{free_bytes / 1e9:.1f} GB free, Ray's object store takes {store_bytes / 1e9:.1f} GB"
    if free_bytes < store_bytes:
        remedy = f"start the container with --shm-size={-(-store_bytes // 1e9):g}g"
        return Finding("/dev/shm", "warning", fact, remedy)
    return Finding("/dev/shm", "ok", fact)


def disk(subject: Subject) -> list[Finding]:
    """Room in the working folder and in the temporary one, where Ray keeps its sessions."""
    places = {"disk": subject.folder, "temporary disk": Path(tempfile.gettempdir())}
    return [
        check_disk(name, place, min_free_bytes=subject.min_free_bytes)
        for name, place in places.items()
    ]


def check_disk(name: str, folder: Path, *, min_free_bytes: int) -> Finding:
    """Room in a folder, and whether it can be written."""
    existing = next(place for place in [folder, *folder.absolute().parents] if place.exists())
    free = shutil.disk_usage(existing).free
    fact = f"{free / 1e9:.1f} GB free in {existing.absolute()}"
    if not os.access(existing, os.W_OK):
        return Finding(name, "wrong", f"{existing} cannot be written", "choose another folder")
    if free < min_free_bytes:
        remedy = f"free some, {min_free_bytes / 1e9:g} GB at least; `mmtrain plan` says how much"
        return Finding(name, "wrong", fact, remedy)
    return Finding(name, "ok", fact)


def open_files(subject: Subject) -> list[Finding]:
    """How many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [check_open_files(soft, hard)]


def check_open_files(soft: int, hard: int) -> Finding:
    """The soft and the hard limit; -1: none."""
    if soft in (-1, resource.RLIM_INFINITY) or soft >= MIN_OPEN_FILES:
        return Finding("open files", "ok", "no limit" if soft < 0 else f"{soft:,}")
    higher = MIN_OPEN_FILES if hard < 0 else min(hard, 65536)
    remedy = f"ulimit -n {higher}" if higher > soft else "raise it in /etc/security/limits.conf"
    return Finding("open files", "warning", f"{soft:,}, Ray wants {MIN_OPEN_FILES:,}", remedy)


def ports(subject: Subject) -> list[Finding]:
    """Ports that a cluster or a server on this machine would listen at."""
    return [check_port(name, port) for name, port in PORTS.items()]


def check_port(name: str, port: int) -> Finding:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as trial:
        trial.settimeout(1)
        taken = trial.connect_ex(("127.0.0.1", port)) == 0
    label = f"port {port}"
    if taken:
        remedy = f"if that is not yours, choose another for {name}"
        return Finding(label, "warning", f"taken, {name} would listen there", remedy)
    return Finding(label, "ok", f"free for {name}")


CHECKS: dict[str, Check] = {
    "cpu": processors,
    "memory": memory,
    "/dev/shm": shared_memory,
    "disk": disk,
    "open files": open_files,
    "ports": ports,
}
