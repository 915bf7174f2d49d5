"""What a recipe means for the tensors of its submodels: which are merged, how, and which rank does it."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hvdkit.errors import MergeError
from hvdkit.files.tensors import NAMES
from hvdkit.merge.files import Info
from hvdkit.merge.output import Layout
from hvdkit.merge.recipe import AVERAGES, Model, Override, Recipe
from hvdkit.merge.rules import RULES, Rule
from hvdkit.merge.settings import Settings
from hvdkit.merge.weights import at_depth, exponential_weights, recorded_weights

_SHOWN = 20
_EMBEDDING = re.compile(r"(^|[._])(emb|wte|wpe)", re.IGNORECASE)
_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Task:
    """One tensor of the merged model."""

    name: str
    out: Info
    models: tuple[int, ...]
    """The submodels that are merged; of a tensor that is copied, those that must have the same."""
    settings: Settings | None
    """None for a tensor that is copied: one of whole numbers."""


@dataclass(frozen=True)
class Plan:
    """The whole merge."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    layout: Layout = field(repr=False)

    def shares(self, ranks: int) -> list[list[Task]]:
        """The tasks of each rank: the largest first, always to the rank that has least to do."""
        shares: list[list[Task]] = [[] for _ in range(ranks)]
        filled = [0] * ranks
        for task in sorted(self.tasks, key=lambda task: -task.out.count):
            rank = filled.index(min(filled))
            shares[rank].append(task)
            filled[rank] += task.out.count
        return shares

    def describe(self) -> Iterator[str]:
        """Which rule merges how many tensors."""
        counts: dict[str, list[int]] = {}
        for task in self.tasks:
            rule = "equal in all, copied" if task.settings is None else task.settings.rule.name
            count = counts.setdefault(rule, [0, 0])
            count[0] += 1
            count[1] += task.out.count
        for rule, (tensors, elements) in counts.items():
            formula = f": {RULES[rule].formula} ({RULES[rule].source})" if rule in RULES else ""
            yield f"{rule}{formula}, {tensors:,} tensors, {elements:,} elements"


def expanded(recipe: Recipe) -> Recipe:
    """The recipe with paths instead of patterns, and with the weights that ema or `weigh_by` stand for."""
    models: list[Model] = []
    for model in recipe.models:
        paths = [model.path]
        if any(mark in model.path for mark in "*?["):
            paths = sorted(glob.glob(model.path), key=_with_numbers)  # noqa: PTH207 - absolute patterns too
            if not paths:
                raise MergeError(f"models: nothing matches {model.path}")
        models.extend(replace(model, path=path) for path in paths)
    weights: Sequence[float] = []
    if recipe.rule == "ema":
        weights = exponential_weights(len(models), recipe.decay)
    elif recipe.weigh_by != "given":
        weights = recorded_weights([Path(model.path) for model in models], recipe.weigh_by)
    if weights:
        models = [replace(model, weight=(weight,)) for model, weight in zip(models, weights, strict=True)]
    return replace(recipe, models=tuple(models))


def make_plan(recipe: Recipe, infos: Sequence[Mapping[str, Info] | None]) -> Plan:
    """The plan of `recipe`, `expanded`, for submodels with these tensors, the base's last (None if there is none).

    Raises MergeError or ConfigError with everything that does not fit, at most 20 faults.
    """
    maker = _Maker(recipe, [tensors or {} for tensors in infos[:-1]], infos[-1])
    tasks = tuple(task for name in maker.names for task in maker.task(name)) if not maker.faults else ()
    if maker.faults:
        more = [f"and {len(maker.faults) - _SHOWN} more"] if len(maker.faults) > _SHOWN else []
        raise MergeError("these submodels cannot be merged:\n  " + "\n  ".join([*maker.faults[:_SHOWN], *more]))
    if not tasks:
        raise MergeError(f"{recipe.models[0].path}: holds no tensors")
    return Plan(recipe, tasks, Layout({task.name: task.out for task in tasks}, recipe.shard_bytes))


class _Maker:
    """Goes through the tensors and collects what does not fit."""

    def __init__(
        self, recipe: Recipe, submodels: Sequence[Mapping[str, Info]], base: Mapping[str, Info] | None
    ) -> None:
        self._recipe, self._submodels, self._base = recipe, submodels, base
        self.names = list(dict.fromkeys(name for infos in submodels for name in infos))
        self.faults: list[str] = []
        layers = [layer for name in self.names if (layer := layer_of(name)) is not None]
        self._last_layer = max(layers, default=0)
        self._check_overrides()
        if base is not None and recipe.missing == "error":
            alone = [name for name in base if name not in self.names]
            self.faults += [f"{name}: only the base has it (missing: leave_out leaves it out)" for name in alone]

    def task(self, name: str) -> Iterator[Task]:
        """The task of tensor `name`; nothing where it does not fit."""
        having = [number for number, infos in enumerate(self._submodels) if name in infos]
        lacking = [self._recipe.models[n].path for n in range(len(self._submodels)) if n not in having]
        if lacking and self._recipe.missing == "error":
            self.faults.append(f"{name}: {', '.join(lacking)} lacks it (missing: leave_out merges it of the others)")
            return
        infos = {self._recipe.models[number].path: self._submodels[number][name] for number in having}
        first = self._submodels[having[0]][name]
        in_base = self._base.get(name) if self._base is not None else None
        if in_base is not None and self._recipe.base is not None:
            infos[self._recipe.base] = in_base
        for path, info in infos.items():
            if info.shape != first.shape or info.dtype.is_floating_point != first.dtype.is_floating_point:
                self.faults.append(
                    f"{name}: {info.dtype} {info.shape} in {path}, {first.dtype} {first.shape} in "
                    f"{self._recipe.models[having[0]].path}"
                )
                return
        if not first.dtype.is_floating_point:
            yield Task(name, first, tuple(having), None)
            return
        dtype = getattr(torch, self._recipe.dtype) if self._recipe.dtype else first.dtype
        if dtype not in NAMES:
            self.faults.append(f"{name}: {dtype} cannot be written to safetensors; give the recipe a dtype")
            return
        settings = self._settings(name, having, in_base is not None)
        if settings is not None:
            yield Task(name, Info(dtype, first.shape), tuple(having), settings)

    def _settings(self, name: str, having: Sequence[int], has_base: bool) -> Settings | None:
        recipe = self._recipe
        override = next((item for item in recipe.tensors if _matches(item, name)), Override())
        rule = _rule(override.rule or recipe.rule)
        if rule.has_base and not has_base:
            if self._recipe.missing == "error":
                self.faults.append(f"{name}: the base {recipe.base} lacks it (missing: leave_out averages it)")
                return None
            rule = RULES["average"]
        depth = self._depth(name)
        weights = override.weights or [model.weight for model in recipe.models]
        densities = [override.density or model.density for model in recipe.models]
        scale = override.scale if override.scale is not None else recipe.scale
        try:
            return Settings(
                rule,
                tuple(at_depth(weights[number], depth) for number in having),
                tuple(at_depth(densities[number], depth) for number in having),
                scale if rule.has_base else 1.0,
                recipe.gamma,
                recipe.epsilon,
                recipe.seed,
            )
        except ValueError as error:
            fault = f"{name}: {error}"
            if not any(known.endswith(str(error)) for known in self.faults):  # the same for every tensor
                self.faults.append(fault)
            return None

    def _depth(self, name: str) -> float:
        """0 for the first layer and embeddings, 1 for the last and what else is outside the layers."""
        layer = layer_of(name)
        if layer is None:
            return float(_EMBEDDING.search(name) is None)
        return layer / self._last_layer if self._last_layer else 0.0

    def _check_overrides(self) -> None:
        for number, item in enumerate(self._recipe.tensors):
            if not any(_matches(item, name) for name in self.names):
                layers = f", layers {item.layers[0]}-{item.layers[1]}" if item.layers else ""
                self.faults.append(f"tensors[{number}]: no tensor matches {item.match!r}{layers}")
            count = len(self._submodels)
            if item.weights is not None and len(item.weights) != count:
                self.faults.append(f"tensors[{number}].weights: {len(item.weights)} weights for {count} submodels")


def _rule(name: str) -> Rule:
    return RULES["average" if name in AVERAGES else name]


def _with_numbers(path: str) -> list[tuple[int, str]]:
    """Sorts step-900 before step-1000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def layer_of(name: str) -> int | None:
    """The first number in a tensor's dotted name."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _matches(override: Override, name: str) -> bool:
    if not fnmatch.fnmatchcase(name, override.match):
        return False
    layer = layer_of(name)
    return override.layers is None or (layer is not None and override.layers[0] <= layer <= override.layers[1])
