"""`package.module:function`, the way in which a command line names one's own code."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdkit.errors import HvdkitError

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def names_function(text: str) -> bool:
    """Whether `text` has the form `package.module:function` and is not the path of a file."""
    return _FORM.fullmatch(text) is not None and not Path(text).exists()


def import_function(text: str, error: type[HvdkitError]) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules of the working folder are found too.

    Raises `error` where the module cannot be imported or has no such function.
    """
    module_name, _, function_name = text.partition(":")
    here = str(Path.cwd())
    # `python -m` puts the working folder on the path, an installed command does not: both shall find the same.
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as problem:
        raise error(
            f"{text}: module {module_name} cannot be imported ({type(problem).__name__}: {problem})"
        ) from problem
    for part in function_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise error(f"{text}: module {module_name} has no function {function_name}")
    function: Callable[..., Any] = found
    return function
