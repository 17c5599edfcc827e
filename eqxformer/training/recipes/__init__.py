"""Recipes: each a config and the data it is for, in one short file."""

from eqxformer.training.experiment import Recipe
from eqxformer.training.recipes import (
    denoise,
    finetune,
    mlm,
    nanogpt,
    rot13,
    shakespeare,
    text,
    translate,
    vpj,
)

RECIPES: dict[str, Recipe] = {
    module.recipe.name: module.recipe
    for module in (text, rot13, vpj, nanogpt, shakespeare, translate, mlm, denoise, finetune)
}


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises `ValueError` that lists those there are."""
    if name not in RECIPES:
        raise ValueError(f"There is no recipe `{name}`; the recipes are {', '.join(RECIPES)}.")
    return RECIPES[name]


__all__ = ["RECIPES", "recipe"]
