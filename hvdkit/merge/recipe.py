"""Recipes: what a merge is made of, in YAML, checked as a whole before any work.

rule: ties                       # a name of RULES; ema: the average over checkpoints, later ones counting more;
                                 # greedy_soup: the average of those that make a metric no worse
base: runs/start                 # for rules on task vectors
models:                          # any number; * in a path stands for several, in order of their names
  - path: runs/law
    weight: 0.7                  # default 1; a list is a gradient over the layers
    density: [0.3, 0.7]          # default 1
  - path: runs/code
scale: 0.8
tensors:                         # exceptions; the first that matches counts
  - match: "*norm*"
    rule: average
  - layers: 0-3
    weights: [1, 3]
dtype: bfloat16                  # default: the first model's dtypes
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hvdkit.errors import ConfigError
from hvdkit.merge.rules import RULES
from hvdkit.untrusted import parse_yaml, shown

Numbers = tuple[float, ...]
"""One number, or several that are a gradient over the layers."""

AVERAGES = ("ema", "greedy_soup")
"""Rules that find weights or submodels for `average`."""
DTYPES = ("float64", "float32", "bfloat16", "float16")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Model:
    """One submodel of a recipe."""

    path: str
    weight: Numbers = (1.0,)
    density: Numbers = (1.0,)


@dataclass(frozen=True)
class Override:
    """What differs for some tensors; None where nothing does."""

    match: str = "*"
    """A pattern of the tensor's name, with * and ?."""
    layers: tuple[int, int] | None = None
    """First and last layer: the first number in the tensor's name."""
    rule: str | None = None
    weights: tuple[Numbers, ...] | None = None
    """One per submodel."""
    density: Numbers | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge as its file says it."""

    models: tuple[Model, ...]
    rule: str = "average"
    base: str | None = None
    scale: float = 1.0
    gamma: float = 0.01
    epsilon: float = 0.1
    seed: int = 0
    decay: float = 0.5
    """Of `ema`: how much of the average so far stays when the next checkpoint comes."""
    metric: str | None = None
    """Of `greedy_soup`: package.module:function, which gets a model folder and returns a number, lower is better."""
    weigh_by: str = "given"
    """given, tokens (that a run of hvdkit saw), or validation_loss (in proportion to exp(-loss) of a run)."""
    missing: str = "error"
    """What a tensor that some submodels lack is: an error, or merged of those that have it (leave_out)."""
    dtype: str | None = None
    shard_bytes: int = 5 * 10**9
    files_from: str | None = None
    """Whose configuration and tokenizer are carried over; default: the base's, else the first submodel's."""
    tensors: tuple[Override, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For the record of the merge."""
        return asdict(self)


def read_recipe(path: Path) -> Recipe:
    """The recipe in the YAML file `path`. Raises ConfigError with all its faults at once."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    return parse_recipe(content, str(path))


def parse_recipe(content: Any, origin: str = "recipe") -> Recipe:
    """The recipe that `content`, plain data, describes. Raises ConfigError with all its faults at once."""
    reader = _Reader()
    recipe = reader.recipe(content)
    if reader.faults or recipe is None:
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  {fault}" for fault in reader.faults))
    return recipe


class _Reader:
    """Turns plain data into a recipe and collects what is wrong on the way."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def recipe(self, content: Any) -> Recipe | None:
        kinds: dict[str, Callable[[Any, str], Any]] = {
            "models": self._models, "rule": self._rule, "base": self._text, "scale": self._number,
            "gamma": self._number, "epsilon": self._number, "seed": self._whole, "decay": self._share,
            "metric": self._text,
            "weigh_by": self._one_of("given", "tokens", "validation_loss"),
            "missing": self._one_of("error", "leave_out"), "dtype": self._one_of(*DTYPES),
            "shard_bytes": self._n_bytes, "files_from": self._text, "tensors": self._overrides,
        }  # fmt: skip
        values = self._fields(content, "recipe", kinds, Recipe)
        if values is None:
            return None
        if not values.get("models"):
            self.faults.append("models: at least one submodel is needed, as `models: [{path: ...}, ...]`")
            return None
        recipe = Recipe(**values)
        for number, override in enumerate(recipe.tensors):
            if override.weights is not None and recipe.rule == "greedy_soup":
                self.faults.append(f"tensors[{number}].weights: greedy_soup decides which submodels there are")
        if (recipe.rule == "greedy_soup") != (recipe.metric is not None):
            self.faults.append("metric: package.module:function belongs to the rule greedy_soup, which needs it")
        needing = [
            rule
            for rule in (recipe.rule, *(item.rule for item in recipe.tensors))
            if rule in RULES and RULES[rule].has_base
        ]
        if recipe.scale != 1 and not needing:
            self.faults.append(f"scale: is of task vectors, which {recipe.rule} does not make")
        if needing and recipe.base is None:
            self.faults.append(f"base: {needing[0]} merges task vectors, and needs the model that they start from")
        return recipe

    def _fields(
        self, content: Any, where: str, kinds: Mapping[str, Callable[[Any, str], Any]], kind: type
    ) -> dict[str, Any] | None:
        if not isinstance(content, Mapping):
            self.faults.append(f"{where}: must be a mapping of {', '.join(kinds)}")
            return None
        assert {item.name for item in fields(kind)} == set(kinds)
        prefix = "" if where == "recipe" else f"{where}."
        values = {}
        for key, value in content.items():
            if key not in kinds:
                close = difflib.get_close_matches(str(key), kinds, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(kinds)}"
                self.faults.append(f"{prefix}{key}: there is no such entry{hint}")
            elif value is not None:
                values[key] = kinds[key](value, f"{prefix}{key}")
        return values

    def _models(self, value: Any, where: str) -> tuple[Model, ...]:
        kinds = {"path": self._text, "weight": self._numbers, "density": self._numbers}
        models = []
        for number, item in enumerate(self._list(value, where)):
            entry = {"path": item} if isinstance(item, str) else item
            values = self._fields(entry, f"{where}[{number}]", kinds, Model)
            if values is not None and "path" not in values:
                self.faults.append(f"{where}[{number}].path: is missing")
            elif values is not None:
                models.append(Model(**values))
        return tuple(models)

    def _overrides(self, value: Any, where: str) -> tuple[Override, ...]:
        kinds = {"match": self._text, "layers": self._layers, "rule": self._one_of(*RULES),
                 "weights": self._lists_of_numbers, "density": self._numbers, "scale": self._number}  # fmt: skip
        found = [
            self._fields(item, f"{where}[{number}]", kinds, Override)
            for number, item in enumerate(self._list(value, where))
        ]
        return tuple(Override(**values) for values in found if values is not None)

    def _list(self, value: Any, where: str) -> Sequence[Any]:
        if isinstance(value, list):
            return value
        self.faults.append(f"{where}: must be a list")
        return []

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value:
            self.faults.append(f"{where}: must be a text, not {shown(value)}")
        return str(value)

    def _number(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.faults.append(f"{where}: must be a number, not {shown(value)}")
            return 1.0
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.faults.append(f"{where}: must be a finite number, not {shown(value)}")
            return 1.0
        return number

    def _whole(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.faults.append(f"{where}: must be a whole number, not {shown(value)}")
            return 0
        return value

    def _share(self, value: Any, where: str) -> float:
        number = self._number(value, where)
        if not 0 <= number < 1:
            self.faults.append(f"{where}: {number:g} must be in [0, 1)")
        return number

    def _numbers(self, value: Any, where: str) -> Numbers:
        items = value if isinstance(value, list) and value else [value]
        return tuple(self._number(item, where) for item in items)

    def _lists_of_numbers(self, value: Any, where: str) -> tuple[Numbers, ...]:
        return tuple(self._numbers(item, where) for item in self._list(value, where))

    def _rule(self, value: Any, where: str) -> str:
        return self._one_of(*RULES, *AVERAGES)(value, where)

    def _layers(self, value: Any, where: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(value))
        if not found or int(found[2] or found[1]) < int(found[1]):
            self.faults.append(f"{where}: must be a layer or a range like 0-3, not {shown(value)}")
            return 0, 0
        return int(found[1]), int(found[2] or found[1])

    def _n_bytes(self, value: Any, where: str) -> int:
        found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) ?([KMG]?B?)", str(value))
        if not found or found[2] not in _UNITS or float(found[1]) <= 0:
            self.faults.append(f"{where}: must be bytes like 5GB, not {shown(value)}")
            return 1
        return int(float(found[1]) * _UNITS[found[2]])

    def _one_of(self, *choices: str) -> Callable[[Any, str], str]:
        def check(value: Any, where: str) -> str:
            if value not in choices:
                close = difflib.get_close_matches(str(value), choices, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                self.faults.append(f"{where}: {shown(value)} is not one of {', '.join(choices)}{hint}")
                return choices[0]
            return str(value)

        return check
