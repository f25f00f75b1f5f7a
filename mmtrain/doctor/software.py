"""Checks of what is installed: versions against the bounds of the project, compilers, builds."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata, util

from packaging.requirements import Requirement
from packaging.version import Version

from mmtrain.doctor.findings import Check, Finding, Subject

PROJECT = "mmtrain"
MIN_DRIVER = 525  # of NVIDIA, for CUDA 12
COMPILERS = ("c++", "g++", "clang++")


def python_version(subject: Subject) -> list[Finding]:
    """Python against the project's own bound."""
    bound = metadata.metadata(PROJECT)["Requires-Python"] or ">=3.11"
    version = platform.python_version()
    fits = Requirement(f"python{bound}").specifier.contains(version)
    if fits:
        return [Finding("python", "ok", version)]
    return [Finding("python", "wrong", f"{version}, needs {bound}", f"install Python {bound}")]


def packages(subject: Subject) -> list[Finding]:
    """Every package that the project depends on, against its bounds."""
    return check_packages(metadata.requires(PROJECT) or ())


def check_packages(requirements: Iterable[str]) -> list[Finding]:
    """Installed versions against requirements; those of extras are left out."""
    wanted = [Requirement(text) for text in requirements]
    return [_package(one) for one in wanted if one.marker is None or one.marker.evaluate({})]


def _package(wanted: Requirement) -> Finding:
    remedy = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(wanted.name, "wrong", "not installed", remedy)
    if not wanted.specifier.contains(Version(version), prereleases=True):
        return Finding(wanted.name, "wrong", f"{version}, needs {wanted.specifier}", remedy)
    return Finding(wanted.name, "ok", version)


def accelerators(subject: Subject) -> list[Finding]:
    """GPUs that torch sees, their driver, NCCL and bf16."""
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        if driver is None:
            return [Finding("accelerator", "ok", "none; the CPU trains, with gloo")]
        remedy = f"install torch built for CUDA; this one is {torch.__version__}"
        return [Finding("accelerator", "wrong", f"driver {driver}, torch sees no GPU", remedy)]
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    fact = f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}"
    nccl = Finding("nccl", "wrong", "torch has none", "install torch built with NCCL")
    if torch.distributed.is_nccl_available():
        version = torch.cuda.nccl.version()  # type: ignore[attr-defined]  # missed by the stubs
        nccl = Finding("nccl", "ok", ".".join(map(str, version)))
    bf16 = Finding("bf16", "ok", "supported")
    if not torch.cuda.is_bf16_supported():
        remedy = "train with --set engine.precision=fp32"
        bf16 = Finding("bf16", "warning", "not supported by the GPU", remedy)
    return [Finding("accelerator", "ok", fact), _driver(driver), nccl, bf16]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None: there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    answer = subprocess.run(
        [program, "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=8, check=False,
    )  # fmt: skip
    return answer.stdout.split("\n")[0].strip() or None if answer.returncode == 0 else None


def _driver(version: str | None) -> Finding:
    if version is None:
        return Finding("driver", "warning", "nvidia-smi does not say", "install nvidia-utils")
    if int(version.split(".")[0]) < MIN_DRIVER:
        return Finding("driver", "wrong", version, f"install driver {MIN_DRIVER} or newer")
    return Finding("driver", "ok", version)


def op_builds(subject: Subject) -> list[Finding]:
    """DeepSpeed's compiled operations: a compiler to build them with, and what Adam is used.

    Training needs none of them: collectives of CPU memory go through gloo, and the optimizer is
    torch's own. Those who want DeepSpeed's own need a compiler.
    """
    spec = util.find_spec("deepspeed")
    if spec is None:
        remedy = "pip install deepspeed, or train with --set engine.name=torch"
        return [Finding("deepspeed ops", "wrong", "deepspeed is not installed", remedy)]
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        remedy = "apt-get install g++ ninja-build (or conda install cxx-compiler)"
        return [Finding("deepspeed ops", "warning", "no C++ compiler: ops cannot be built", remedy)]
    fact = f"built when first used, by {compiler}; training uses none of them"
    if shutil.which("ninja") is None and util.find_spec("ninja") is None:
        return [
            Finding("deepspeed ops", "warning", f"{compiler}, but no ninja", "pip install ninja")
        ]
    return [Finding("deepspeed ops", "ok", fact)]


def command_line(subject: Subject) -> list[Finding]:
    """The `mmtrain` that a shell finds is the one of this Python."""
    found, own = shutil.which("mmtrain"), os.path.dirname(sys.executable)
    if found is None:
        return [Finding("mmtrain", "warning", "not on the PATH", f"export PATH={own}:$PATH")]
    if os.path.dirname(os.path.abspath(found)) != own:
        fact = f"the shell finds {found}, Python is {sys.executable}"
        return [Finding("mmtrain", "warning", fact, f"export PATH={own}:$PATH")]
    return [Finding("mmtrain", "ok", f"{metadata.version(PROJECT)}, {found}")]


CHECKS: dict[str, Check] = {
    "python": python_version,
    "packages": packages,
    "mmtrain": command_line,
    "accelerator": accelerators,
    "deepspeed ops": op_builds,
}
