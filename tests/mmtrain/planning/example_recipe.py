"""A small recipe to plan, and where no corpora are."""

from pathlib import Path

from mmtrain.recipe import Recipe, load_recipe, override

NOWHERE = Path("/nowhere")


def small(*settings: str) -> Recipe:
    """One task of pictures by a transformer of two blocks of width 32."""
    recipe = load_recipe("polyvit_tiny").only(["digit"])
    sizes = ["model.body.model_dim=32", "model.body.num_layers=2", "model.body.mlp_dim=64"]
    return override(recipe, [*sizes, *settings])
