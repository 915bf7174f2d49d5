"""The command line and the YAML file that a frozen dataclass means: an option for each of its fields."""

from dataclasses import field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from hvdkit.errors import ConfigError
from hvdkit.untrusted import check_yaml, has_aliases, shown

if TYPE_CHECKING:
    import jsonargparse

Options = TypeVar("Options")
_LOADER = "hvdkit"


def option(default: Any, text: str) -> Any:
    """A field with its help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def make_parser(name: str, description: str, defaults: Path | None = None) -> "jsonargparse.ArgumentParser":
    """A parser without options but `--config`; `defaults` is a YAML file."""
    import jsonargparse

    jsonargparse.set_loader(_LOADER, _load_checked, exceptions=(ValueError,))
    parser = jsonargparse.ArgumentParser(prog=name, description=description, exit_on_error=False, parser_mode=_LOADER,
                                         default_config_files=[str(defaults)] if defaults else [])  # fmt: skip
    parser.add_argument("--config", action="config", help="a YAML file with the options below (underscores for dashes)")
    return parser


def _load_checked(text: str) -> Any:
    """What jsonargparse loads of a configuration, which may come from elsewhere. Raises ValueError."""
    import jsonargparse

    check_yaml(text)
    try:
        value = jsonargparse.get_loader("yaml")(text)
    except Exception as error:  # whatever PyYAML makes of a date or number that cannot be
        raise ValueError(" ".join(str(error).split())) from None
    for name, item in value.items() if isinstance(value, dict) else ():
        # Texts where numbers should be are loaded once more, by jsonargparse itself.
        if isinstance(item, str) and has_aliases(item):
            raise ValueError("aliases (* and &) are not allowed")
        # No option takes one, and jsonargparse stumbles over it where it expects a list.
        if any(isinstance(inner, dict) for inner in (item if isinstance(item, list) else [item])):
            raise ValueError(f"{shown(name)} cannot be a mapping")
    return value


def add_options(parser: "jsonargparse.ArgumentParser", kind: type[Any]) -> None:
    """An option for each field of the dataclass `kind`, whose fields come from `option`."""
    for item in fields(kind):
        takes_several = item.name in ("data", "divide")
        more: dict[str, Any] = {"nargs": "*"} if takes_several else {}
        default = item.default_factory() if callable(item.default_factory) else item.default
        kind_of: Any = str if takes_several else item.type
        flag = f"--{item.name.replace('_', '-')}"
        if item.type is bool:
            more, kind_of = {"nargs": "?", "const": True}, bool
        parser.add_argument(flag, type=kind_of, default=default, help=item.metadata["help"], **more)


def read(parser: "jsonargparse.ArgumentParser", argv: list[str] | None) -> dict[str, Any]:
    """The values that a command line gives. Raises ConfigError for anything it cannot read."""
    import jsonargparse

    try:
        values: dict[str, Any] = parser.parse_args(argv).as_dict()
    except (jsonargparse.ArgumentError, ValueError, TypeError, OverflowError, OSError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{text} (`{parser.prog} --help` lists the options)") from None
    return values


def from_values(kind: type[Options], values: dict[str, Any]) -> Options:
    """The dataclass `kind` with those of `values` that are its fields. Raises ConfigError for one that is missing.

    jsonargparse takes a `null` for any option.
    """
    for item in fields(kind):  # type: ignore[arg-type]
        if values[item.name] is None and NoneType not in get_args(cast(Any, item.type)):
            raise ConfigError(f"--{item.name.replace('_', '-')} needs a value, not null")
    return kind(**{item.name: values[item.name] for item in fields(kind)})  # type: ignore[arg-type]
