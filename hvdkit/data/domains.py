"""Domains: parts of the text that a submodel each is trained on, such as a language, a customer, or a package."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hvdkit.data.sources import TextFile, find_sources, python_parts
from hvdkit.errors import DataError


@dataclass(frozen=True)
class Domain:
    """A part of the text: `data` is what names it on a command line, `name` is fit for a folder."""

    name: str
    data: str


def find_domains(arguments: Sequence[str]) -> list[Domain]:
    """A domain for each of `arguments` (folders, globs, files, functions), in order, named by its last part (by all of
    them, then also a number, where names would be equal); without arguments the parts of Python's standard library, by
    package. Not collective.

    Raises DataError for fewer than two, and for a file that two of them hold: it could be held out in one only.
    """
    given = [*arguments] or python_parts()
    if len(given) < 2:
        raise DataError(f"{given[0]} is one domain: name two or more folders, globs or files to train submodels on")
    owners: dict[object, str] = {}
    for argument in given:
        for source in find_sources([argument]):
            identity = source.path.resolve() if isinstance(source, TextFile) else source
            owner = owners.setdefault(identity, argument)
            if owner != argument or given.count(argument) > 1:
                name = source.path if isinstance(source, TextFile) else source.name
                raise DataError(f"{name} is in two domains, {owner} and {argument}: a domain must not overlap another")
    return [Domain(name, argument) for name, argument in zip(_names(given), given, strict=True)]


def _names(arguments: Sequence[str]) -> list[str]:
    last = [_last_part(argument) for argument in arguments]
    counts = Counter(last)
    names: list[str] = []
    for name, argument in zip(last, arguments, strict=True):
        wanted = name if counts[name] == 1 else _fit("-".join(Path(argument).parts))
        others = {*names, *(other for other in last if counts[other] == 1 and other != name)}
        numbered = (f"{wanted}-{number}" for number in count(2))  # "x y" and "x-y" are both fit as x-y
        names.append(wanted if wanted not in others else next(name for name in numbered if name not in others))
    return names


def _last_part(argument: str) -> str:
    without_wildcards = [part for part in Path(argument).parts if not re.search(r"[*?\[]", part)]
    return _fit(Path(without_wildcards[-1] if without_wildcards else argument).name.rpartition(":")[2])


def _fit(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "domain"
