"""What of kustomize our overlays use, and no more: whatever else a file asks for is refused.

Where `kubectl` is on the machine, a test holds this against it.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ALLOWED = {
    "apiVersion", "kind", "namespace", "labels", "resources", "components", "images", "patches",
    "replacements",
}  # fmt: skip
CLUSTERWIDE = {"Namespace"}


def render(folder: Path, *, below: tuple[dict[str, Any], ...] = ()) -> list[dict[str, Any]]:
    """The objects of a kustomization, with `below` as those that a component changes."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(asked) - ALLOWED
    if unknown:
        raise NotImplementedError(f"{folder}: {sorted(unknown)}")
    made = copy.deepcopy(list(below))
    for name in asked.get("resources", ()):
        path = folder / name
        made += render(path) if path.is_dir() else load(path)
    for name in asked.get("components", ()):
        made = render(folder / name, below=tuple(made))
    for patch in asked.get("patches", ()):
        for one in selected(made, patch["target"]):
            for step in yaml.safe_load(patch["patch"]):
                apply(one, step)
    for each in made:
        name_and_label(each, asked)
    for image in asked.get("images", ()):
        for container in containers(made):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for replacement in asked.get("replacements", ()):
        replace(made, replacement)
    return made


def load(path: Path) -> list[dict[str, Any]]:
    """The objects of a file; what two places share by an anchor is each one's own afterwards."""
    return [json.loads(json.dumps(one)) for one in yaml.safe_load_all(path.read_text())]


def name_and_label(one: dict[str, Any], asked: dict[str, Any]) -> None:
    if "namespace" in asked and one["kind"] not in CLUSTERWIDE:
        one["metadata"]["namespace"] = asked["namespace"]
    for labels in asked.get("labels", ()):
        assert set(labels) == {"pairs"}
        one["metadata"].setdefault("labels", {}).update(labels["pairs"])


def selected(made: list[dict[str, Any]], target: dict[str, str]) -> list[dict[str, Any]]:
    assert set(target) <= {"kind", "name"}
    found = [
        one
        for one in made
        if one["kind"] == target["kind"]
        and target.get("name") in (None, one["metadata"]["name"])
    ]  # fmt: skip
    assert found, target
    return found


def apply(one: dict[str, Any], step: dict[str, Any]) -> None:
    """One step of a JSON patch (RFC 6902): `add` or `replace` of a field that is named."""
    *way, last = step["path"].strip("/").split("/")
    place: Any = one
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place[name]
    assert step["op"] in ("add", "replace")
    assert (last in place) == (step["op"] == "replace"), step["path"]
    place[last] = copy.deepcopy(step["value"])


def replace(made: list[dict[str, Any]], replacement: dict[str, Any]) -> None:
    source = dict(replacement["source"])
    field = source.pop("fieldPath")
    (found,) = selected(made, source)
    for target in replacement["targets"]:
        for one in selected(made, target["select"]):
            for path in target["fieldPaths"]:
                place, last = path.split(".")
                assert last in one[place]
                one[place][last] = copy.deepcopy(found[field])


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


def canonical(made: list[dict[str, Any]]) -> list[str]:
    """The objects in one order, for comparison."""
    return sorted(json.dumps(one, sort_keys=True) for one in made)
