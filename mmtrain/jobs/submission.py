"""What is sent to a cluster: a command of this command line, the code that it needs, and a name.

The name is the run's: the same command for the same folder has the same name from any machine,
so that submitting again finds the job that is there. What to do then is decided by a pure function.
"""

import hashlib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mmtrain
import pipelines
from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.names import own_files

PACKAGES = (Path(mmtrain.__file__).parent, Path(pipelines.__file__).parent)
MAX_BYTES = 32_000_000  # of code and files sent with a job; our packages have 2 MB
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobError(MMTrainError):
    """A job cannot be submitted, found or followed."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A command as a cluster runs it.

    Attributes:
        run: the run's name, and the first attempt's submission id.
        arguments: what was asked for, as typed.
        files: local files that the command reads, by their name in the job's working directory.
        root: folder on the cluster that relative paths begin at.
        resumes: whether the command can go on with what an attempt before it left.
    """

    run: str
    arguments: tuple[str, ...]
    files: Mapping[str, Path]
    root: str
    resumes: bool

    @property
    def entrypoint(self) -> str:
        """The shell line: code and files stay where Ray unpacked them, work is done in `root`."""
        sent = {str(path): name for name, path in self.files.items()}
        words = [_shell_word(argument, sent) for argument in self.arguments]
        words += ["--address", "auto", *(["--resume"] if self.resumes else [])]
        root = shlex.quote(self.root)
        missing = shlex.quote(f"error: the cluster has no folder {self.root}; give --root DIR")
        enter = f"code=$PWD; cd {root} 2>/dev/null || {{ echo {missing} >&2; exit 2; }}"
        return f"{enter}; exec python -P -m mmtrain {' '.join(words)}"

    @property
    def digest(self) -> str:
        """SHA-256 of the arguments and the files' contents, 16 hex digits."""
        digest = hashlib.sha256("\0".join((self.root, *self.arguments)).encode())
        for name, path in sorted(self.files.items()):
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A job on the cluster, one of those of a run."""

    id: str
    run: str
    digest: str
    status: str  # PENDING, RUNNING, or one of ENDED

    @property
    def number(self) -> int:
        """1 for the run's first."""
        return int(self.id.removeprefix(self.run).removeprefix("-") or 1)


@dataclass(frozen=True, slots=True)
class Decision:
    """What submitting a run comes to: `start` a job, `attach` to it, or it is `done`."""

    act: Literal["start", "attach", "done"]
    id: str


def decide(submission: Submission, attempts: Sequence[Attempt]) -> Decision:
    """What to do about a run, given the jobs that the cluster has of it; never two at once.

    Raises:
        JobError: the run is under way with other arguments.
    """
    if not attempts:
        return Decision("start", submission.run)
    newest = max(attempts, key=lambda attempt: attempt.number)
    same = newest.digest == submission.digest
    if newest.status not in ENDED:
        if same:
            return Decision("attach", newest.id)
        raise JobError(
            f"{newest.id} is {newest.status.lower()} with other arguments or files; wait for it, "
            f"stop it with `mmtrain jobs stop {newest.id}`, or give another --out"
        )
    if newest.status == "SUCCEEDED" and same and submission.resumes:
        return Decision("done", newest.id)
    return Decision("start", f"{submission.run}-{newest.number + 1}")


def read_submission(
    arguments: Sequence[str], *, root: str, commands: Mapping[str, Any]
) -> Submission:
    """A command as typed, checked as this machine would check it before running it.

    Args:
        arguments: the command and its options, without `mmtrain`.
        root: folder on the cluster that relative paths begin at.
        commands: of this command line by name, as click holds them; each reads its own options.

    Raises:
        JobError: no command, one that needs no cluster, or a wrong option.
        MMTrainError: the recipe is wrong.
    """
    if not Path(root).is_absolute():
        raise JobError(f"--root {root}: give the folder's whole path on the cluster")
    command, params = _parse(arguments, commands)
    recipe = _recipe_of(params)
    name = recipe.name if recipe else _name_of(params)
    files = _local_files(params) | (_named_files(recipe) if recipe else {})
    swept = params.get("sweep")
    out = params.get("out") or Path("runs") / (f"{name}_{swept}" if swept else name)
    run = _run_name(command, name, out=Path(root) / (out if "out" in params else params["data"]))
    return Submission(run, tuple(arguments), files, root, resumes="resume" in params)


def stage_code(folder: Path, submission: Submission) -> Path:
    """Copies the two packages that run now into `folder`, and the files that the command names.

    Raises:
        JobError: they are too large to be sent.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in PACKAGES:
        shutil.copytree(package, folder / package.name, ignore=ignored)
    for name, path in submission.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise JobError(
            f"code and files have {sum(sizes.values()) / 1e6:.0f} MB, at most "
            f"{MAX_BYTES / 1e6:.0f} MB are sent with a job; the largest is "
            f"{largest.relative_to(folder)}: put it on the cluster's own storage"
        )
    return folder


def _parse(arguments: Sequence[str], commands: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command's name and its parameters, read by the command line itself."""
    able = {name: command for name, command in commands.items() if _runs_on_a_cluster(command)}
    if not arguments:
        raise JobError(f"which command? one of: {', '.join(able)}; e.g. train quickstart")
    name = arguments[0]
    if name in commands and name not in able:
        raise JobError(f"{name} runs on this machine; a cluster runs: {', '.join(able)}")
    if name not in able:
        raise UnknownNameError("command for a cluster", name, tuple(able))
    try:
        context = able[name].make_context(name, list(arguments[1:]))
    except Exception as error:
        if not hasattr(error, "format_message"):  # not the command line's own
            raise
        raise JobError(f"{name}: {error.format_message()}") from None  # pyright: ignore[reportAttributeAccessIssue]
    return name, context.params


def _runs_on_a_cluster(command: Any) -> bool:
    """Whether it takes a cluster's address and leaves something; serving and checking do not."""
    names = {param.name for param in command.params}
    return "address" in names and bool(names & {"recipe", "out"})


def _recipe_of(params: Mapping[str, Any]) -> Any:
    from mmtrain.recipe import load_recipe

    recipe = params.get("recipe")
    return recipe and load_recipe(recipe, params.get("settings") or ()).only(params.get("task"))


def _named_files(recipe: Any) -> dict[str, Path]:
    """The user's files that a recipe names, as of a loss, by their names in the job's directory.

    Python looks there for what is not in the job's working directory; see `names.py`. A file that
    lies elsewhere than below the directory here is not sent: the cluster must have it.
    """
    files = own_files(recipe.model_dump(mode="json"))
    here = Path.cwd()
    return {str(path.relative_to(here)): path for path in files if path.is_relative_to(here)}


def _name_of(params: Mapping[str, Any]) -> str:
    if params.get("out"):
        return Path(params["out"]).name
    raise JobError("without a recipe a job has no name; give the folder that it writes")


def _local_files(params: Mapping[str, Any]) -> dict[str, Path]:
    """Arguments that are files here, by their name where the job runs; FILE.py:FUNCTION counts."""
    given = [v for name, v in params.items() if name != "out" and isinstance(v, str | Path)]
    files: dict[str, Path] = {}
    for value in given:
        path = Path(re.sub(r"(\.py):\w+$", r"\1", str(value)))
        if path.is_file() and files.setdefault(path.name, path) != path:
            raise JobError(f"{path} and {files[path.name]} have one name; rename one")
    return files


def _shell_word(argument: str, sent: Mapping[str, str]) -> str:
    """An argument as the shell reads it, a sent file's under the folder that it is unpacked in."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", "")
    path = value if equals else argument
    file, colon, function = path.partition(".py:")
    key = f"{file}.py" if colon else path
    if key not in sent:
        return shlex.quote(argument)
    tail = sent[key] + (f":{function}" if colon else "")
    return shlex.quote(option + equals) * bool(equals) + '"$code"/' + shlex.quote(tail)


def _run_name(command: str, name: str, *, out: Path) -> str:
    readable = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
    digest = hashlib.sha256(f"{command}\0{name}\0{out.as_posix()}".encode()).hexdigest()[:8]
    return f"{command}-{readable}-{digest}"
