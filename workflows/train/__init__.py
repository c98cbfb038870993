"""Training by recipe: `cubeloom train RECIPE`."""

from pathlib import Path

from .classifier import TrainingReport, train_classifier
from .recipe import ClassifierRecipe, load_recipe

__all__ = ["ClassifierRecipe", "TrainingReport", "load_recipe", "train", "train_classifier"]


def train(recipe: Path, out: Path) -> TrainingReport:
    """Train what a recipe file describes and save it.

    Args:
        recipe: a YAML file (see `ClassifierRecipe`); its paths are relative to itself.
        out: the file to write.

    Raises:
        ConfigError: the recipe is wrong.
        InputError: its scenes or labels cannot be used.
    """
    return train_classifier(load_recipe(recipe), out)
