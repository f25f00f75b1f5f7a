import pytest

from mmtrain.recipe import Recipe, load_recipe
from mmtrain.run.prepare import prepare_run
from pipelines.errors import AugmentationError, UnknownNameError
from pipelines.task import Augmentation


def recipe_with(augmentation: Augmentation) -> Recipe:
    recipe = load_recipe("quickstart", ())
    task = recipe.tasks["image_classification"].model_copy(update={"augment": (augmentation,)})
    return recipe.model_copy(update={"tasks": recipe.tasks | {task.name: task}})


@pytest.mark.parametrize(
    ("augmentation", "error", "reason"),
    [
        (Augmentation(name="shft"), UnknownNameError, "no augmentation 'shft'; nearest: shift"),
        (
            Augmentation(name="shift", settings={"pixels": -1}),
            AugmentationError,
            "augmentation shift: pixels: Input should be greater than or equal to 1",
        ),
        (
            Augmentation(name="spec_augment"),
            AugmentationError,
            "task image_classification: augmentation spec_augment is for audio, not for image",
        ),
    ],
)
def test_wrong_augmentation_is_refused_before_the_run_starts(tmp_path, augmentation, error, reason):
    out = tmp_path / "run"
    with pytest.raises(error, match=reason):
        prepare_run(recipe_with(augmentation), out=out, data_dir=tmp_path, resume=False)
    assert not out.exists()
