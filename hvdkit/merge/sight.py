"""Which rank sees which submodel: all of them on one machine or a shared file system, its own host's otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvdkit.errors import MergeError
from hvdkit.merge.files import Info, Submodel
from hvdkit.merge.recipe import Recipe
from hvdkit.runtime import World, gather_objects, together


@dataclass(frozen=True)
class Sight:
    """The submodels of a recipe and its base as this rank and the others see them."""

    mine: list[Submodel | None]
    """In the recipe's order, the base last (None if there is none); None also where this rank sees nothing."""
    infos: list[Mapping[str, Info] | None]
    """The same on all ranks; None only for a base that there is not."""
    owners: list[int]
    """A rank that sees each of them."""
    sees_all: bool
    """Whether every rank sees all."""

    def close(self) -> None:
        """Let go of all files."""
        for submodel in self.mine:
            if submodel is not None:
                submodel.close()


def look(world: World, recipe: Recipe) -> Sight:
    """Open the submodels of `recipe`. Collective.

    Raises MergeError on all ranks for one that no rank sees, that cannot be read, or that is not the same everywhere.
    """
    paths = [*(model.path for model in recipe.models), recipe.base]
    exists = gather_objects(world, [path is not None and Path(path).exists() for path in paths])
    for number, path in enumerate(paths):
        if path is not None and not any(row[number] for row in exists):
            raise MergeError(f"{path}: there is no such file or folder, on any of {world.size} ranks")
    mine = together(world, lambda: _open(recipe))
    seen = gather_objects(world, [None if submodel is None else dict(submodel.infos) for submodel in mine])
    infos: list[Mapping[str, Info] | None] = []
    owners: list[int] = []
    load = [0] * world.size
    for number, path in enumerate(paths):
        ranks = [rank for rank in range(world.size) if seen[rank][number] is not None]
        if any(seen[rank][number] != seen[ranks[0]][number] for rank in ranks):
            raise MergeError(f"{path}: not the same model on every host")
        owner = min(ranks, key=lambda rank: load[rank], default=0)
        load[owner] += 1
        owners.append(owner)
        infos.append(seen[ranks[0]][number] if ranks else None)
    sees_all = all(seen[rank][number] is not None or path is None for rank in range(world.size)
                   for number, path in enumerate(paths))  # fmt: skip
    return Sight(mine, infos, owners, sees_all)


def _open(recipe: Recipe) -> list[Submodel | None]:
    base = Submodel(Path(recipe.base)) if recipe.base is not None and Path(recipe.base).exists() else None
    models = [Submodel(Path(model.path), base) if Path(model.path).exists() else None for model in recipe.models]
    return [*models, base]
