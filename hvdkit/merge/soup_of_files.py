"""Greedy soup of models on disk: each candidate is merged into a folder that does not stay, and measured there."""

import itertools
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hvdkit.data.progress import Say
from hvdkit.errors import MergeError
from hvdkit.merge.execute import merge_files
from hvdkit.merge.recipe import Model, Recipe
from hvdkit.merge.soup import cook
from hvdkit.runtime import World, share_object, together

Members = tuple[Model, ...]


def choose_members(world: World, recipe: Recipe, metric: Callable[[Path], float], out: Path, say: Say) -> Recipe:
    """The recipe that averages the greedy soup's members. Collective.

    `metric` gets the folder of a merged model, on rank 0, and returns a number: lower is better. Candidates lie beside
    `out`, one at a time. Raises MergeError if it gives a number for none of the submodels.
    """
    scratch = share_object(world, out.absolute().with_name(f".{out.name}.{uuid.uuid4().hex}.soup"))

    def measure(members: Members) -> float:
        try:
            merge_files(world, replace(recipe, models=members, rule="average"), scratch / "candidate", _quiet)
            found = together(world, lambda: _measured(metric, scratch / "candidate") if world.is_root else 0.0)
        finally:
            if world.is_root:
                shutil.rmtree(scratch, ignore_errors=True)
        found = share_object(world, found)
        say(f"{', '.join(model.path for model in members)}: {found:.6g}")
        return found

    alone: list[Members] = [(model,) for model in recipe.models]
    soup = cook(alone, measure, lambda parts: tuple(itertools.chain(*parts)))
    say(f"greedy soup of {', '.join(model.path for model in soup.state)}: {soup.metric:.6g}")
    return replace(recipe, models=soup.state, rule="average")


def _measured(metric: Callable[[Path], float], folder: Path) -> float:
    try:
        return float(metric(folder))
    except Exception as error:
        raise MergeError(f"metric: it raised {type(error).__name__}: {error}") from error


def _quiet(text: str) -> None:
    pass
