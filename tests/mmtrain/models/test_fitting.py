"""What nets need of features: taken, compared, or refused in one line before a process starts."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmtrain.bundle import bundle_task, load_bundle, save_bundle
from mmtrain.cli import app
from mmtrain.modalities import image, image_patches, text_tokens
from mmtrain.models import polyvit
from mmtrain.models.fitting import FittingError
from mmtrain.models.model import ModelConfig, TaskSpec, build_model
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.run.model import fitted
from mmtrain.run.prepare import prepare_run
from mmtrain.start.initialize import plan_start
from mmtrain.start.trained import Trained
from pipelines.errors import CorpusError
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.shards import vocabulary_path
from pipelines.task import Source, Task
from pipelines.vocabulary import Vocabulary
from tests.mmtrain.example_bundle import LINEAGE, example_bundle
from tests.mmtrain.example_corpus import (
    TASKS,
    example_vocabulary,
    write_split,
)

PICTURES = "tasks.image_classification.inputs"
CAPTIONS = "tasks.image_captioning.inputs"


def colour(*settings: str) -> Recipe:
    return load_recipe("quickstart", [f"{PICTURES}.channels=3", *settings])


def words(recipe: Recipe, folder: Path) -> str:
    """Why the run is refused, corpora not being built."""
    with pytest.raises(FittingError) as caught:
        prepare_run(recipe, out=folder / "run", data_dir=folder, resume=False)
    assert not (folder / "run").exists()
    return str(caught.value)


# ---- pictures


def test_channels_of_the_quickstart_s_pictures_are_the_net_s():
    config = fitted(colour(f"{CAPTIONS}.channels=3"))
    assert config.nets["image"] == image.Config(channels=3)
    assert fitted(load_recipe("quickstart")).nets["image"] == image.Config(channels=1)


def test_pictures_in_colour_beside_grey_ones_are_refused_with_both_tasks(tmp_path):
    assert words(colour(), tmp_path) == (
        "tasks image_classification and image_captioning share net 'image': the inputs of "
        "image_classification have channels 3, those of image_captioning 1; give both the same: "
        "--set tasks.image_captioning.inputs.channels=3"
    )


def test_channels_that_a_recipe_sets_are_compared(tmp_path):
    recipe = colour(f"{CAPTIONS}.channels=3", 'model.nets={"image": {"channels": 1}}')
    said = words(recipe, tmp_path)
    assert said == (
        "task image_classification: its image inputs have channels 3, net 'image' has 1; leave "
        "model.nets.image.channels out (null) to take the task's, or give the task the other: "
        "--set tasks.image_classification.inputs.channels=1"
    )
    remedied = override(recipe, ["model.nets.image.channels=null"])
    with pytest.raises(CorpusError):
        prepare_run(remedied, out=tmp_path / "run", data_dir=tmp_path, resume=False)


def test_channels_of_a_body_are_compared(tmp_path):
    recipe = load_recipe("san_resnet", ["model.body.channels=3"])
    assert "the body of family 'resnet' has 3; leave model.body.channels out" in words(
        recipe, tmp_path
    )


@pytest.mark.parametrize("command", ["train", "plan", "build"])
def test_commands_refuse_in_a_line_and_start_nothing(command, tmp_path):
    (tmp_path / "recipe.json").write_text(colour().model_dump_json())
    out = ["--out", str(tmp_path / "run")] if command == "train" else []
    words = [command, str(tmp_path / "recipe.json"), "--data", str(tmp_path / "corpora"), *out]
    told = CliRunner().invoke(app, words)
    assert isinstance(told.exception, FittingError)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "corpora").exists()


# ---- patches


def test_sizes_of_polyvit_s_nets_are_the_tasks():
    nets = fitted(load_recipe("polyvit_tiny")).nets
    assert nets["image_patches"] == image_patches.Config(
        height=32, width=32, channels=1, patch=(8, 8)
    )
    assert (nets["audio_patches"].num_frames, nets["audio_patches"].num_bins) == (48, 32)  # type: ignore[attr-defined]
    assert nets["elements"].patch == (8, 8)  # type: ignore[attr-defined]
    released = fitted(load_recipe("polyvit_b_9task")).nets
    for net, settings in polyvit.released_nets().items():
        assert released[net] == settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["tasks.digit_mask.inputs.height=45"], "digit_mask: net 'image_patches': 45 rows are no"),
        (["tasks.digit_mask.inputs.height=48"], "32 x 32, net 'elements' gives 48 x 32 on net"),
        (
            ['model.nets={"elements": {"patch": [4, 4]}, "image_patches": {"patch": [8, 8]}}'],
            "model.nets.elements.patch is (4, 4), the patches of net 'image_patches' are (8, 8)",
        ),
        (
            ['model.nets={"elements": {"scores": "patch"}, "image_patches": {"patch": [8, 8]}}'],
            "are of 32 x 32, net 'elements' gives 4 x 4",
        ),
    ],
)
def test_patches_that_do_not_fit_are_refused(settings, said, tmp_path):
    assert said in words(load_recipe("polyvit_digit_mask", settings), tmp_path)


# ---- sounds


def test_sounds_of_no_fixed_length_are_refused_by_a_net_of_patches(tmp_path):
    recipe = load_recipe("polyvit_spoken_digit", ["tasks.spoken_digit.inputs.num_frames=null"])
    assert "needs num_frames of audio inputs, they have none" in words(recipe, tmp_path)


@pytest.mark.parametrize(
    ("representation", "field", "value"),
    [("waveform", "sample_rate_hz", 8_000), ("log_mel", "num_bins", 64), ("log_mel", "hop_ms", 8)],
)
def test_tasks_that_share_a_net_of_sounds_agree(representation, field, value, tmp_path):
    first = AudioFeature(representation=representation)
    second = first.model_copy(update={field: value})
    recipe = load_recipe("debug")
    shades = TASKS["shades"]
    tasks = {
        name: shades.model_copy(update={"name": name, "inputs": feature})
        for name, feature in (("one", first), ("two", second))
    }
    said = words(recipe.with_(tasks=tasks), tmp_path)
    assert said.startswith("tasks one and two share net '")
    assert said.endswith(f"--set tasks.two.inputs.{field}={getattr(first, field)}")


# ---- text


def text_task(name: str, *, max_tokens: int) -> Task:
    return Task(
        name=name,
        source=Source(uri="raw/names", format="tsv"),
        inputs=TextFeature(max_tokens=max_tokens),
        targets=LabelFeature(classes=("a", "b")),
        metrics=("accuracy",),
        baseline="majority_class",
        batch_size=2,
    )


def texts(**nets: text_tokens.Config) -> Recipe:
    tasks = {name: text_task(name, max_tokens=n) for name, n in (("one", 9), ("two", 70))}
    model = ModelConfig(family="polyvit", body=polyvit.Config(), nets=nets)
    return load_recipe("polyvit_digit").with_(tasks=tasks, model=model)


def test_positions_of_texts_are_as_many_as_the_longest_has(tmp_path):
    assert fitted(texts()).nets["text_tokens"] == text_tokens.Config(max_tokens=70)
    assert fitted(texts().only(["one"])).nets["text_tokens"] == text_tokens.Config(max_tokens=64)
    said = words(texts(text_tokens=text_tokens.Config(max_tokens=64)), tmp_path)
    assert "task two: its text inputs have max_tokens 70, net 'text_tokens' has 64" in said


def example_recipe(**fields: object) -> Recipe:
    recipe = load_recipe("debug")
    return recipe.with_(tasks=TASKS, model=recipe.model.model_copy(update=fields))


def built(folder: Path) -> Path:
    """The task `names`, with its vocabulary."""
    vocabulary = example_vocabulary()
    vocabulary.save(vocabulary_path(folder, digest=vocabulary.digest))
    for split in ("train", "validation"):
        rows = [("Peru", "Peru"), ("Mali", "Mali")]
        write_split(folder, TASKS["names"], split=split, rows=rows, vocabulary=vocabulary)
    return folder


def test_the_vocabulary_s_size_is_that_of_the_corpora():
    vocabulary = example_vocabulary()
    assert fitted(example_recipe(), vocabulary).vocab_size == vocabulary.size == 290
    assert fitted(example_recipe(vocab_size=400), vocabulary).vocab_size == 400
    assert load_recipe("quickstart").model.vocab_size is None
    assert fitted(load_recipe("quickstart")).vocab_size == 2000  # not built: as large as allowed
    assert fitted(load_recipe("polyvit_tiny")).vocab_size is None  # no text


def test_fewer_tokens_than_the_corpora_have_are_refused_before_a_process_starts(tmp_path):
    recipe = example_recipe(vocab_size=280).only(["names"])
    said = words(recipe, built(tmp_path))
    assert said == (
        "task names: the vocabulary of its text has 290 tokens, net 'text' has 280 "
        "(model.vocab_size); leave that out: --set model.vocab_size=null, or build with --set "
        "build.vocabulary_size=280"
    )


def test_weights_of_another_vocabulary_leave_the_tables_of_tokens_as_drawn(tmp_path):
    source = load_bundle(example_bundle(tmp_path / "bundle"))
    trained = Trained(source.card, source.state, source.vocabulary)
    other = Vocabulary.train(["a b c"], size=290, commands=("to_tree", "to_german"))
    config = source.card.model.model_copy(update={"vocab_size": other.size})
    specs = [task.spec for task in source.card.tasks.values()]
    start = plan_start(
        build_model(config, specs, seed=1),
        trained,
        targets={name: task.targets for name, task in TASKS.items()},
        vocabulary=other,
        inflation="central_frame",
    )
    assert start.fresh == {"modality/text": 1, "modality/text_output": 2}


# ---- what was saved before


def test_a_recipe_with_sizes_of_its_own_keeps_them(tmp_path):
    saved = json.loads(load_recipe("quickstart").model_dump_json())
    saved["model"] |= {"vocab_size": 2000, "nets": {"image": {"channels": 1}}}
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    recipe = load_recipe(str(tmp_path / "recipe.json"))
    assert fitted(recipe) == fitted(load_recipe("quickstart"))


def test_a_run_of_before_can_be_gone_on_with_by_its_name(tmp_path):
    saved = json.loads(load_recipe("polyvit_tiny").model_dump_json())
    sizes = {"height": 32, "width": 32, "channels": 1}
    saved["model"] |= {"vocab_size": 2}
    saved["model"]["nets"] = {
        "image_patches": {**sizes, "patch": [8, 8]},
        "video_tubelets": {**sizes, "num_frames": 8, "patch": [2, 8, 8]},
        "audio_patches": {"num_frames": 48, "num_bins": 32, "patch": [8, 8], "channels": 1},
        "elements": {"patch": [8, 8]},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    recipe = load_recipe(str(tmp_path / "recipe.json"))
    assert fitted(recipe) == fitted(load_recipe("polyvit_tiny"))


def test_a_bundle_without_nets_has_the_sizes_that_it_was_trained_with(tmp_path):
    task = text_task("one", max_tokens=256)  # longer than the 64 positions there were by default
    spec = TaskSpec(name="one", input_net="text_tokens", output_net="linear", num_outputs=2)
    nets = {"text_tokens": text_tokens.Config(max_tokens=64)}
    body = polyvit.Config(model_dim=8, num_layers=1, num_heads=1, mlp_dim=8)
    model = build_model(
        ModelConfig(family="polyvit", body=body, nets=nets, vocab_size=320), [spec], seed=0
    )
    save_bundle(
        tmp_path / "bundle",
        model=model.config.model_copy(update={"nets": {}}),
        tasks={"one": bundle_task(task, spec=spec)},
        state=model.state_dict(),
        vocabulary=example_vocabulary(),
        lineage=LINEAGE,
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.build_model().stems["text_tokens"].max_tokens == 64
    ids = torch.ones(1, 4, dtype=torch.long)
    scores = bundle.build_model()(
        task="one", inputs=ids, input_lengths=torch.tensor([4]), targets=None
    ).logits
    assert scores.shape == (1, 2)
