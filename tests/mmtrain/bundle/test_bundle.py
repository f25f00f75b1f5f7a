"""Bundles: whole or not at all, checked before use, data only."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmtrain.bundle import (
    Bundle,
    BundleError,
    bundle_task,
    code_version,
    find_bundle,
    load_bundle,
    load_card,
    save_bundle,
)
from tests.mmtrain.example_bundle import LINEAGE, example_bundle
from tests.mmtrain.example_corpus import TASKS
from tests.mmtrain.small_disk import free_bytes, small_disk

__all__ = ["small_disk"]  # a fixture

FILES = ("bundle.json", "model.safetensors", "vocabulary.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return example_bundle(tmp_path / "bundle")


def save_again(bundle: Bundle, folder: Path, *, step: int = 7) -> Path:
    return save_bundle(
        folder,
        model=bundle.card.model,
        tasks=bundle.card.tasks,
        state=bundle.state,
        vocabulary=bundle.vocabulary,
        lineage=LINEAGE.model_copy(update={"step": step}),
    )


def test_a_loaded_bundle_is_the_one_saved(folder: Path, tmp_path: Path):
    bundle = load_bundle(folder)
    again = load_bundle(save_again(bundle, tmp_path / "again"))
    assert again.card == bundle.card
    assert again.digest == bundle.digest
    assert again.vocabulary == bundle.vocabulary
    assert again.card.tasks["trees"].inputs == TASKS["trees"].inputs
    for name, tensor in bundle.build_model().state_dict().items():
        assert torch.equal(again.build_model().state_dict()[name], tensor), name


def test_a_large_model_is_built_without_drawing_weights_and_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = load_bundle(folder)
    drawn = bundle.build_model().state_dict()
    monkeypatch.setattr("mmtrain.models.model._LARGE", 0)
    model = bundle.build_model()
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    for name, tensor in model.state_dict().items():
        assert torch.equal(drawn[name], tensor), name


def test_a_bundle_holds_three_files_and_leaves_nothing_beside(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_or_changes_the_digest(folder: Path, name: str):
    digest = load_bundle(folder).digest
    path = folder / name
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    if name == "bundle.json":  # what names the others' digests is named by the registry's tag
        assert load_card_digest(folder) != digest
    else:
        with pytest.raises(BundleError, match=name):
            load_bundle(folder)


def load_card_digest(folder: Path) -> str:
    try:
        return load_card(folder)[1]
    except BundleError:
        return "refused"


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "code.py"])
def test_a_card_that_lists_another_file_is_refused(folder: Path, name: str):
    card = json.loads((folder / "bundle.json").read_text())
    card["files"][name] = card["files"]["model.safetensors"]
    (folder / "bundle.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="not a card"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json"])
def test_a_card_that_lists_too_little_is_refused(folder: Path, name: str):
    card = json.loads((folder / "bundle.json").read_text())
    del card["files"][name]
    (folder / "bundle.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match=f"lists no {name}"):
        load_bundle(folder)


def test_a_card_of_more_parameters_than_there_are_is_refused(folder: Path):
    card = json.loads((folder / "bundle.json").read_text())
    card["num_parameters"] += 1
    (folder / "bundle.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match=r"holds \d+ numbers, bundle.json says \d+"):
        load_bundle(folder)


def test_a_full_disk_is_left_as_it_was_and_the_bundle_before_stands(folder: Path, small_disk: Path):
    bundle = load_bundle(folder)
    place = small_disk / "bundle"
    small = {"a": torch.zeros(9)}
    save_again(replace(bundle, state=small, vocabulary=None), place)
    free, before = free_bytes(small_disk), (place / "bundle.json").read_bytes()
    large = {"a": torch.zeros(100_000)}
    with pytest.raises(BundleError, match=r"No space left .* needs 400,000 bytes, in .* are free"):
        save_again(replace(bundle, state=large), place)
    assert free_bytes(small_disk) == free
    assert [path.name for path in small_disk.iterdir()] == ["bundle"]
    assert (place / "bundle.json").read_bytes() == before


def test_a_bundle_whose_place_cannot_be_taken_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = load_bundle(folder)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == folder and ".old." not in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match=r"cannot be written: Input/output error \(EIO\)"):
        save_again(bundle, folder, step=8)
    assert load_bundle(folder).digest == bundle.digest
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path):
    outside = (folder / "model.safetensors").rename(tmp_path / "outside")
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(BundleError, match="missing"):
        load_bundle(folder)


def test_a_failed_save_leaves_the_bundle_before(folder: Path):
    bundle = load_bundle(folder)

    class FullDisk:
        def save(self, path: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(BundleError, match=r"No space left .*; it needs [\d,]+ bytes"):
        save_bundle(
            folder,
            model=bundle.card.model,
            tasks=bundle.card.tasks,
            state=bundle.state,
            vocabulary=FullDisk(),  # type: ignore[arg-type]  # a vocabulary that cannot be written
            lineage=LINEAGE,
        )
    assert load_bundle(folder).digest == bundle.digest
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_tensors_that_share_memory_are_written_apart(folder: Path, tmp_path: Path):
    bundle = load_bundle(folder)
    name, tensor = next(iter(bundle.state.items()))
    shared = {**bundle.state, "alias": tensor}
    saved = save_bundle(
        tmp_path / "shared",
        model=bundle.card.model,
        tasks=bundle.card.tasks,
        state=shared,
        vocabulary=bundle.vocabulary,
        lineage=LINEAGE,
    )
    assert torch.equal(load_bundle(saved).state["alias"], bundle.state[name])


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path):
    bundle = load_bundle(folder)
    state = dict(bundle.state)
    state.pop(next(iter(state)))
    saved = save_bundle(
        tmp_path / "other",
        model=bundle.card.model,
        tasks=bundle.card.tasks,
        state=state,
        vocabulary=bundle.vocabulary,
        lineage=LINEAGE,
    )
    with pytest.raises(BundleError, match="another model"):
        load_bundle(saved).build_model()


def test_a_run_folder_gives_its_newest_bundle(folder: Path, tmp_path: Path):
    bundle = load_bundle(folder)
    for step in (9, 100, 20):
        save_again(bundle, tmp_path / "run" / "bundles" / f"step-{step}", step=step)
    assert find_bundle(tmp_path / "run").name == "step-100"
    assert find_bundle(tmp_path) == folder
    assert find_bundle(folder) == folder
    with pytest.raises(BundleError, match="run folder"):
        find_bundle(tmp_path / "nothing")


def test_decoding_is_bounded_by_the_longest_target_that_can_be_built(folder: Path):
    tasks = load_bundle(folder).card.tasks
    assert {name: task.max_target_length for name, task in tasks.items()} == {
        "shades": 1,
        "trees": 32,
        "names": 16,
    }
    assert bundle_task(TASKS["names"], spec=tasks["names"].spec) == tasks["names"]


def test_the_code_version_names_release_and_sources():
    assert code_version().startswith("0.")
    assert len(code_version().split("+")[1]) == 12


@pytest.mark.parametrize("package", ["mmtrain", "pipelines"])
def test_the_code_version_follows_every_file_of_both_packages(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "room" / "loop.py"
    path.parent.mkdir()
    path.write_text("a = 1")
    monkeypatch.setattr(f"{package}.__path__", [str(tmp_path)])
    before = code_version.__wrapped__()
    path.write_text("a = 2")
    assert code_version.__wrapped__() != before
