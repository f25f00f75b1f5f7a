import pytest

from mmtrain.recipe import Recipe, RecipeError, load_recipe, override, recipe_functions
from pipelines.errors import UnknownNameError
from pipelines.names import OwnCodeError
from pipelines.plan import check_divides
from pipelines.task_order import bucket_batch_sizes


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("debug")


def test_setting_changes_one_field_at_any_depth(recipe):
    changed = override(recipe, ["optimizer.learning_rate=0.5", "model.body.model_dim=64"])
    assert changed.optimizer.learning_rate == 0.5
    assert changed.model.body.model_dim == 64
    assert changed.num_steps == recipe.num_steps


def test_setting_reaches_into_a_task(recipe):
    task = next(iter(recipe.tasks))
    assert override(recipe, [f"tasks.{task}.loss_weight=2"]).tasks[task].loss_weight == 2.0


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("optimizer.learning_rat=1", "optimizer.learning_rate"),
        ("num_step=1", "num_steps"),
        ("tasks.parsin.loss_weight=1", "tasks.parsing.loss_weight"),
    ],
)
def test_unknown_field_names_the_nearest(recipe, setting, near):
    with pytest.raises(UnknownNameError, match=near):
        override(recipe, [setting])


@pytest.mark.parametrize(
    "setting", ["num_steps=many", "num_steps=0", "optimizer.betas=1", "engine.zero_stage=7"]
)
def test_value_of_the_wrong_type_or_range_is_refused_by_field(recipe, setting):
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        override(recipe, [setting])


def test_setting_without_a_value_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"dotted\.field=value"):
        override(recipe, ["num_steps"])


def test_recipe_survives_json(tmp_path, recipe):
    path = tmp_path / "run.json"
    path.write_text(recipe.model_dump_json())
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).digest() == recipe.digest()


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UnknownNameError, match="quickstart"):
        load_recipe("quikstart")


def test_damaged_recipe_file_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"name": "x"')
    with pytest.raises(RecipeError, match=r"run\.json"):
        load_recipe(str(path))


def test_missing_recipe_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(str(tmp_path / "none.json"))


def test_recipe_of_a_file_of_the_users_own(tmp_path):
    path = tmp_path / "my_runs.py"
    path.write_text(
        "from mmtrain.recipe import load_recipe\n"
        "def short():\n    return load_recipe('debug').with_(num_steps=3)\n"
    )
    assert load_recipe(f"{path}:short").num_steps == 3
    with pytest.raises(UnknownNameError, match="short"):
        load_recipe(f"{path}:shrt")


def test_file_that_does_not_run_is_refused_in_one_line(tmp_path):
    path = tmp_path / "my_runs.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(OwnCodeError, match="nothing_of_that_name"):
        load_recipe(f"{path}:short")


def test_only_keeps_the_tasks_named(recipe):
    task = next(iter(recipe.tasks))
    assert list(recipe.only([task]).tasks) == [task]
    with pytest.raises(UnknownNameError, match=task):
        recipe.only([task[:-1]])


@pytest.mark.parametrize("name", sorted(recipe_functions()))
def test_every_shipped_recipe_builds_and_survives_json(name):
    built = load_recipe(name)
    assert Recipe.model_validate_json(built.model_dump_json()) == built


@pytest.mark.parametrize("name", sorted(recipe_functions()))
def test_every_shipped_recipe_shares_its_batches_out_over_its_workers(name):
    shipped = load_recipe(name)
    for task in shipped.tasks.values():
        check_divides(
            task.name,
            bucket_batch_sizes(task, bounds=task.bucket_bounds or (32,)),
            world_size=shipped.num_workers,
            accumulation=shipped.engine.accumulation,
        )


def test_a_run_of_some_tasks_has_their_subtasks_alone():
    recipe = load_recipe("san_polyvit").only(["digit", "spoken_digit"])
    assert recipe.pruning is not None
    assert list(recipe.pruning.subtasks) == ["digit", "spoken_digit"]
    assert load_recipe("polyvit_tiny").only(["digit"]).pruning is None
