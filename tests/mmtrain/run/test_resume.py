"""Going on with a changed recipe: every field is either refused with both values, or told."""

import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, create_model

from mmtrain import checkpoint
from mmtrain.checkpoint import Progress
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.files import CHECKPOINTS, RECIPE
from mmtrain.recipe import Recipe, RecipeError, load_recipe, override
from mmtrain.run.corpora import check_corpora, open_corpora
from mmtrain.run.model import recipe_model
from mmtrain.run.prepare import prepare_run
from mmtrain.run.resume import FIELDS, change_of, check_resume
from pipelines.errors import CorpusError
from pipelines.shards import shard_folder
from tests.mmtrain.example_corpus import RAW, TASKS, shade, write_split
from tests.pipelines.toy_corpus import build_toy

ROWS = {change: set(fields.split()) for change, fields in FIELDS.items()}


# ---- the table


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a field holds, itself or in a dict, a tuple or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in models_in(part)]


def unclassified(model: type[BaseModel], rows: set[str], *, before: str = "") -> list[str]:
    """Fields of a tree of models that have no row, nor anything above them."""
    found = []
    for name, field in model.model_fields.items():
        path = f"{before}{name}"
        inner = models_in(field.annotation)
        if path not in rows and not inner:
            found.append(path)
        elif path not in rows:
            below = f"{path}.*." if typing.get_origin(field.annotation) is dict else f"{path}."
            found += [name for part in inner for name in unclassified(part, rows, before=below)]
    return found


def test_every_field_of_a_recipe_is_classified():
    assert unclassified(Recipe, ROWS["refused"] | ROWS["told"]) == []
    assert ROWS["refused"] & ROWS["told"] == set()


def test_a_new_field_would_be_missed_and_is_refused_until_it_has_a_row():
    longer = create_model("Longer", __base__=OptimizerConfig, lookahead=(int, 0))
    recipe = create_model("Later", __base__=Recipe, optimizer=(longer, ...), spare=(bool, False))
    rows = ROWS["refused"] | ROWS["told"]
    assert unclassified(recipe, rows) == ["optimizer.lookahead", "spare"]
    assert change_of("optimizer.lookahead") == "refused"


def test_every_row_is_of_a_field():
    for row in ROWS["refused"] | ROWS["told"]:
        without = (ROWS["refused"] | ROWS["told"]) - {row}
        left = unclassified(Recipe, without)
        assert any(name == row or name.startswith(f"{row}.") for name in left), row


# ---- what is refused and what is told


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("debug")


def resumed(saved: Recipe, recipe: Recipe, *, step: int = 12) -> str | None:
    progress = Progress(step=step, recipe_json=saved.model_dump_json())
    return check_resume(recipe, progress, uri="file:///run/checkpoints/step-12", corpora={})


@pytest.mark.parametrize(
    ("setting", "field", "values"),
    [
        ('schedule.name="uniform"', "schedule.name", '"alternating", the recipe says "uni'),
        ("schedule.temperature=5", "schedule.temperature", "1.0, the recipe says 5.0"),
        ("schedule.adaptive.power=2", "schedule.adaptive.power", "1.0, the recipe says 2.0"),
        ("stream.shuffle_window=4", "stream.shuffle_window", "16, the recipe says 4"),
        ("tasks.parsing.batch_size=24", "tasks.parsing.batch_size", "the recipe says 24"),
        ('tasks.parsing.loss="cross_entropy"', "tasks.parsing.loss", "null, the recipe says"),
        ("tasks.parsing.num_steps=9", "tasks.parsing.num_steps", "null, the recipe says 9"),
        ('tasks.parsing.source.uri="x"', "tasks.parsing.source.uri", 'the recipe says "x"'),
        ("optimizer.name=sgd", "optimizer.name", '"adamw", the recipe says "sgd"'),
        ("optimizer.betas=[0.9,0.999]", "optimizer.betas", "[0.9, 0.98], the recipe says"),
        ("balancing=pcgrad", "balancing", '"none", the recipe says "pcgrad"'),
        ("seed=1", "seed", "0, the recipe says 1"),
        ('frozen=["body/*"]', "frozen", '[], the recipe says ["body/*"]'),
        ("model.body.model_dim=16", "model.body.model_dim", "32, the recipe says 16"),
        ('init_from="vit"', "init_from", 'null, the recipe says "vit"'),
        (
            'pruning={"subtasks": {"a": ["parsing"]}, "uncovered": "allow"}',
            "pruning",
            'null, the recipe says {"subtasks": {"a": ["parsing"]}',
        ),
    ],
)
def test_what_gives_cursors_or_moments_another_meaning_is_refused(recipe, setting, field, values):
    with pytest.raises(RecipeError) as caught:
        resumed(recipe, override(recipe, [setting]))
    message = str(caught.value)
    assert f"step-12 is of another {field}: " in message
    assert values in message
    assert "own recipe.json, or give another --out" in message
    assert "\n" not in message


def test_tasks_in_another_order_are_refused(recipe):
    turned = recipe.with_(tasks=dict(reversed(recipe.tasks.items())))
    with pytest.raises(RecipeError, match=r'another tasks: \["image_cl.*, the recipe says \["pars'):
        resumed(recipe, turned)


def test_a_run_that_would_end_before_its_checkpoint_is_refused_with_both_steps(recipe):
    with pytest.raises(RecipeError, match=r"is of step 12, the recipe ends at num_steps=6"):
        resumed(recipe, recipe.with_(num_steps=6))
    assert resumed(recipe, recipe.with_(num_steps=12)) is not None


TOLD = {
    "name": '"other"',
    "build.max_bad_share": "0.5",
    "tasks.parsing.metrics": '["exact"]',
    "tasks.parsing.baseline": '"majority_class"',
    "tasks.parsing.loss_weight": "2.0",
    "tasks.parsing.label_smoothing": "0.25",
    "tasks.parsing.augment": '[{"name": "shift", "settings": {}}]',
    "tasks.parsing.mixup": "0.5",
    "tasks.parsing.drop_layer": "0.5",
    "tasks.parsing.learning_rate": "0.125",
    "tasks.parsing.warmup_steps": "7",
    "stream.steps_per_read": "3",
    "stream.block_bytes": "5",
    "stream.prefetch": "7",
    "stream.cache_bytes": "9",
    "stream.buffer_bytes": "2097152",
    "stream.num_readers": "2",
    "stream.num_cpus": "0.5",
    "stream.timeout_s": "9.0",
    "optimizer.learning_rate": "0.0005",
    "optimizer.schedule": '"cosine"',
    "optimizer.warmup_steps": "9",
    "optimizer.decay_start": "0.5",
    "optimizer.decay_factor": "0.5",
    "optimizer.accumulated_rate": '"single"',
    "optimizer.eps": "0.5",
    "optimizer.weight_decay": "0.5",
    "optimizer.weight_decay_loss": "0.5",
    "optimizer.clip_norm": "0.5",
    "engine.name": '"deepspeed"',
    "engine.zero_stage": "2",
    "engine.precision": '"bf16"',
    "engine.ep_size": "2",
    "engine.accumulation": "2",
    "engine.activation_checkpointing": "true",
    "engine.offload_optimizer": "true",
    "num_steps": "40",
    "num_workers": "2",
    "use_gpu": "true",
    "log_every": "3",
    "validate_every": "3",
    "validation_batches": "3",
    "monitor_every": "3",
    "save_every": "3",
    "keep_checkpoints": "3",
    "max_failures": "1",
    "check_ranks": "true",
}


@pytest.mark.parametrize("field", TOLD)
def test_what_may_change_is_told_with_both_values(recipe, field):
    told = resumed(recipe, override(recipe, [f"{field}={TOLD[field]}"]))
    assert told is not None
    assert told.startswith(f"changed since step 12: {field} ")
    assert told.endswith(f" -> {TOLD[field]}")


def test_all_that_may_change_is_tried_above():
    tried = {field.replace("parsing", "*").replace(".max_bad_share", "") for field in TOLD}
    assert tried == ROWS["told"]


def test_several_changes_are_told_in_one_line_and_none_is_no_line(recipe):
    other = override(recipe, ["optimizer.learning_rate=0.0005", "num_steps=24"])
    assert resumed(recipe, other) == (
        "changed since step 12: optimizer.learning_rate 0.002 -> 0.0005, num_steps 20 -> 24"
    )
    assert resumed(recipe, recipe) is None


def test_a_recipe_that_this_version_does_not_read_is_said_in_a_line(recipe):
    with pytest.raises(RecipeError, match=r"recipe that this version does not read: name: Field"):
        check_resume(recipe, Progress(step=12, recipe_json="{}"), uri="step-12", corpora={})


# ---- corpora


def test_a_corpus_of_other_examples_is_refused_with_both_digests(tmp_path):
    before = build_toy(tmp_path / "a", lengths=[3] * 20)
    after = build_toy(tmp_path / "b", lengths=[3] * 21)
    progress = Progress(step=4, corpora={"copy": before.digest})
    check_corpora(progress, {"copy": before})
    check_corpora(Progress(step=4), {"copy": after})  # saved before digests were
    with pytest.raises(CorpusError) as caught:
        check_corpora(progress, {"copy": after})
    for part in (str(after.folder), "step 4", before.digest[:12], after.digest[:12]):
        assert part in str(caught.value)


@pytest.fixture
def run(tmp_path) -> tuple[Recipe, Path, Path]:
    """A run of one task that was saved at step 3: recipe, folder, corpora."""
    data_dir, out, task = tmp_path / "data", tmp_path / "run", TASKS["shades"]
    for split in ("train", "validation"):
        write_split(data_dir, task, split=split, rows=RAW["shades"]["train"], vocabulary=None)
    recipe = load_recipe("debug").with_(
        name="shades", tasks={"shades": task}, engine=EngineConfig(name="torch"), num_steps=6
    )
    assert prepare_run(recipe, out=out, data_dir=data_dir, resume=False) is None
    corpora = open_corpora(recipe, data_dir)
    engine = build_engine(
        recipe.engine, model=recipe_model(recipe, None), optimizer=recipe.optimizer
    )
    progress = Progress(
        step=3,
        cursors={"shades": 3},
        recipe_json=recipe.model_dump_json(),
        corpora={"shades": corpora.train["shades"].digest},
    )
    checkpoint.save(out / CHECKPOINTS, engine=engine, progress=progress)
    return recipe, out, data_dir


def test_a_run_that_goes_on_tells_what_changed(run):
    recipe, out, data_dir = run
    other = override(recipe, ["optimizer.learning_rate=0.0005"])
    told = prepare_run(other, out=out, data_dir=data_dir, resume=True)
    assert told == "changed since step 3: optimizer.learning_rate 0.002 -> 0.0005"
    assert Recipe.model_validate_json((out / RECIPE).read_text()) == other


def test_a_refused_change_leaves_the_run_folder_as_it_was(run):
    recipe, out, data_dir = run
    with pytest.raises(RecipeError, match=r"another optimizer\.name"):
        prepare_run(
            override(recipe, ["optimizer.name=sgd"]), out=out, data_dir=data_dir, resume=True
        )
    assert Recipe.model_validate_json((out / RECIPE).read_text()) == recipe


def test_a_run_whose_corpus_was_built_anew_with_other_examples_is_refused(run):
    recipe, out, data_dir = run
    folder = shard_folder(data_dir, task="shades", split="train")
    folder.rename(folder.with_name("train.old"))
    rows = [(shade(90), "light"), *RAW["shades"]["train"]]
    write_split(data_dir, TASKS["shades"], split="train", rows=rows, vocabulary=None)
    with pytest.raises(CorpusError, match=r"train is not the corpus .* at step 3: its digest is"):
        prepare_run(recipe, out=out, data_dir=data_dir, resume=True)
