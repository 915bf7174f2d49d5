"""Reads what others wrote: JSON and YAML as plain data of bounded depth, and names that stay in their folder.

Files come from anywhere, so whatever is wrong with one is a ValueError here, for the caller to turn into its own error.
Python's parsers alone also raise RecursionError for deep nesting; PyYAML raises KeyError, IndexError and AttributeError
for tags that do not fit, and its aliases make exponentially much of a few lines once they are printed.
"""

import json
from pathlib import Path
from typing import Any

MOST_LEVELS = 200
_MOST_BITS = 1023
_SHOWN = 200
_LONGEST_NAME = 255
"""Bytes, in all file systems of Linux."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises ValueError, also for nesting beyond MOST_LEVELS, numbers beyond floats, and halves of surrogate pairs.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text without aliases and tags. Raises ValueError."""
    import yaml

    check_yaml(text)
    try:
        value = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, OverflowError) as error:  # a date beyond the last one overflows
        raise ValueError(" ".join(str(error).split())) from None
    _check(value)
    return value


def check_yaml(text: str) -> None:
    """Raises ValueError unless `text` is YAML of bounded depth without aliases and tags, which any loader may have."""
    import yaml

    level = 0
    try:
        for event in yaml.parse(text, Loader=_loader()):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ValueError("aliases (* and &) are not allowed")
            if getattr(event, "tag", None) is not None:
                raise ValueError("tags (!) are not allowed")
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if level > MOST_LEVELS:
                raise ValueError(_TOO_DEEP)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it, ten times as fast


def has_aliases(text: str) -> bool:
    """Whether `text` would be YAML with aliases, if it were read as that."""
    import yaml

    if "&" not in text or "*" not in text:
        return False
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_loader()))
    except yaml.YAMLError:
        return False


def inside(folder: Path, name: object, within: Path | None = None) -> Path:
    """The path of `name` in `folder`; symbolic links may lead to other places in there (or in `within`), nowhere else.

    Raises ValueError for a name that leads out of the folder, or is none.
    """
    if not isinstance(name, str) or not name or "\0" in name or any(map(_is_too_long, name.split("/"))):
        raise ValueError(f"{shown(name)} is not the name of a file")
    path = folder / name
    # Python before 3.13 raises RuntimeError for links that go round in a circle.
    try:
        goes_out = Path(name).is_absolute() or not path.resolve().is_relative_to((within or folder).resolve())
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{shown(name)} cannot be followed ({error})") from None
    if goes_out:
        raise ValueError(f"{shown(name)} points outside its folder")
    return path


def _is_too_long(part: str) -> bool:
    return len(part.encode(errors="surrogateescape")) > _LONGEST_NAME


def shown(value: object) -> str:
    """`value` as Python writes it, cut where it is long: for messages."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = f"a {type(value).__name__} too long to write"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"


def _check(value: Any) -> None:
    """Raises ValueError for what would break code that walks through `value` or prints it."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item.keys()
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, int) and item.bit_length() > _MOST_BITS:
                raise ValueError("a whole number that no float can hold")
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError(f"half a surrogate pair in {shown(item)}") from None
        if not following:
            return
        level = following
    raise ValueError(_TOO_DEEP)
