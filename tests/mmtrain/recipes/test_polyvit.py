"""The published PolyViT: its values by task, and its start from a ViT by the README's command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmtrain import cli
from mmtrain import train as training
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.modalities import HeadInitError
from mmtrain.models.model import MultiTaskModel
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.run.components import run_optimizer
from mmtrain.run.corpora import open_corpora
from mmtrain.run.model import recipe_model
from mmtrain.start.entry import start_model
from pipelines.errors import MMTrainError
from pipelines.modalities import video
from pipelines.modalities.audio import to_wav
from pipelines.modalities.image import to_png
from pipelines.modalities.video import VideoFeature
from pipelines.task import Task
from tests.mmtrain.example_vit import random_vit, to_npz
from tests.pipelines.tone_corpus import build_here

PICTURES = ("imagenet", "cifar100", "cifar10", "pets", "resisc45")
CLIPS, SOUNDS = ("kinetics400", "moments"), ("vggsound", "audioset")
SHRUNKEN = [
    *(f"tasks.{task}.inputs.{side}=32" for task in PICTURES for side in ("height", "width")),
    *(f"tasks.{task}.inputs.{side}=32" for task in CLIPS for side in ("height", "width")),
    *(f"tasks.{task}.inputs.num_frames=8" for task in CLIPS),
    *(f"tasks.{task}.inputs.{side}=32" for task in SOUNDS for side in ("num_frames", "num_bins")),
    'model.nets={"image_patches": {"height": 32, "width": 32},'
    ' "video_tubelets": {"height": 32, "width": 32, "num_frames": 8},'
    ' "audio_patches": {"num_frames": 32, "num_bins": 32}}',
    "model.body.model_dim=16",
    "model.body.num_layers=3",
    "model.body.num_heads=2",
    "model.body.mlp_dim=24",
]  # fmt: skip


class StartedError(MMTrainError):
    """Stands where the cluster would start."""


def write_raw(task: Task, data_dir: Path) -> None:
    """Two examples of each split."""
    rng = np.random.default_rng(0)
    for split in task.source.splits:
        folder = data_dir / task.source.uri / split
        lines = []
        for number in range(2):
            if task.name in PICTURES:
                picture = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                path = folder / str(number) / "a.png"
                path.parent.mkdir(parents=True)
                path.write_bytes(to_png(picture))
                continue
            folder.mkdir(parents=True, exist_ok=True)
            data = to_wav(rng.normal(0, 0.1, 16_000), rate_hz=16_000)
            if task.name in CLIPS:
                frames = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
                clip = VideoFeature(height=32, width=32, channels=3, num_frames=20)
                data = video.decode(frames, feature=clip, vocabulary=None)
            (folder / f"{number}.bin").write_bytes(data)
            labels = {"label": str(number), "labels": ["0", "5"]}
            lines.append(json.dumps({"file": f"{number}.bin", **labels}))
        if lines:
            (folder / "all.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Corpora of the nine tasks and the file of a ViT, all small."""
    place = tmp_path_factory.mktemp("published")
    for task in shrunken().tasks.values():
        write_raw(task, place / "corpora")
        build_here(task, data_dir=place / "corpora")
    vit = random_vit(patch_size=16, image_size=48)
    np.savez(place / "ViT-B_16.npz", **to_npz(vit))  # type: ignore[arg-type]
    return place


def shrunken() -> Recipe:
    return override(load_recipe("polyvit_b_9task"), SHRUNKEN)


def model_of(recipe: Recipe) -> MultiTaskModel:
    return recipe_model(recipe, None)


def test_the_readmes_command_starts_from_an_official_vit(folder, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise StartedError("cluster")

    monkeypatch.setattr(training, "ray_cluster", stop)
    monkeypatch.chdir(folder)
    command = ["train", "polyvit_b_9task", "--init-from", "ViT-B_16.npz", "--out", "run"]
    assert " ".join(command[:4]) in Path(__file__).parents[3].joinpath("README.md").read_text()
    settings = [word for setting in SHRUNKEN for word in ("--set", setting)]
    result = CliRunner().invoke(cli.app, [*command, *settings])
    assert isinstance(result.exception, StartedError), result.output
    assert "starts from" in result.output
    fresh = result.output.partition("fresh: ")[2]
    assert fresh.count("(2 tensors)") == 9  # the heads alone
    recipe = Recipe.model_validate_json((folder / "run" / "recipe.json").read_text())
    assert recipe.init_from == str(folder / "ViT-B_16.npz")

    model = model_of(recipe)
    corpora = open_corpora(recipe, folder / "corpora")
    start_model(model, recipe, corpora.vocabulary, registry=None, resumes=False)
    theirs = to_npz(random_vit(patch_size=16, image_size=48))
    kernel = torch.from_numpy(theirs["embedding/kernel"]).permute(3, 2, 0, 1)
    state = model.state_dict()
    assert torch.equal(state["stems.image_patches.embed.weight"], kernel)
    assert torch.equal(state["stems.audio_patches.embed.weight"], kernel)
    assert torch.equal(state["stems.video_tubelets.embed.weight"][:, :, 2], kernel)


def test_heads_of_pictures_start_drawn_and_the_others_at_zero():
    model = model_of(shrunken())
    for task in (*PICTURES, *CLIPS, *SOUNDS):
        project = model.head(task).project
        assert not project.bias.any()
        if task in PICTURES:
            deviation = project.weight.std().item()
            assert deviation == pytest.approx(0.25, rel=0.25)  # LeCun: sqrt(1 / 16 inputs)
        else:
            assert not project.weight.any()


def test_a_head_without_that_choice_is_refused():
    recipe = load_recipe("quickstart", ["tasks.image_classification.head_init=zeros"])
    recipe = recipe.only(["image_classification"])
    with pytest.raises(HeadInitError, match="'linear' and 'elements', its head is 'label'"):
        model_of(recipe)


def test_values_by_task_are_the_published_ones():
    recipe = load_recipe("polyvit_b_9task")
    found = {
        name: (task.learning_rate, task.batch_size, task.num_steps, task.momentum)
        for name, task in recipe.tasks.items()
    }
    assert found == {
        "imagenet": (0.03, 512, 20_000, 0.9),
        "cifar100": (0.03, 512, 10_000, 0.9),
        "cifar10": (0.03, 512, 10_000, 0.9),
        "pets": (0.03, 512, 500, 0.9),
        "resisc45": (0.1, 512, 2_500, 0.9),
        "kinetics400": (0.1, 64, 100_680, 0.9),
        "moments": (0.25, 64, 123_640, 0.9),
        "vggsound": (0.5, 64, 134_700, 0.9),
        "audioset": (0.5, 64, 15_900, 0.9),
    }
    assert recipe.num_steps == 417_920
    assert run_optimizer(recipe).warmup_steps == 47_330
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.clip_norm, optimizer.weight_decay) == ("sgd", 1.0, 0.0)
    assert OptimizerConfig.model_validate(optimizer).schedule == "warm_cosine"
    sounds = {task: (recipe.tasks[task].mixup, recipe.tasks[task].drop_layer) for task in SOUNDS}
    assert set(sounds.values()) == {(0.3, 0.3)}


def test_the_published_model_has_the_published_size():
    recipe = load_recipe("polyvit_b_9task")
    with torch.device("meta"):
        model = model_of(recipe)
    assert sum(held.numel() for held in model.parameters()) == 92_683_471
