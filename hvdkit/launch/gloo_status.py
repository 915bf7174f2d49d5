"""horovodrun over Gloo with its ranks' status: of itself it ends with 1 whatever theirs was.

It knows better, and says so in the error that ends it, so it is run by a program that reads it there. Kept as text: the
launcher is its own program, which brings Horovod and torch into its process and not into `hvdkit run`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = r"""
import re, sys
from horovod.runner.launch import run_commandline
sys.argv[0] = "horovodrun"
try:
    sys.exit(run_commandline())
except RuntimeError as error:
    found = re.search(r"^Exit code: (\d+)$", str(error), re.MULTILINE)
    sys.stderr.write(f"horovodrun: {error}\n")
    sys.exit(int(found[1]) if found else 1)
"""


def is_gloo(command: Sequence[str]) -> bool:
    """Whether this is the command line of horovodrun over Gloo, as `build_command` makes it."""
    return tuple(command[:2]) == ("horovodrun", "--gloo")


def with_ranks_status(program: str, command: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The program and words that run `command`, whose program is `program`, and end with the ranks' status."""
    # Another environment's horovodrun may need another Python.
    if not is_gloo(command) or Path(program).parent != Path(sys.executable).parent:
        return program, command
    return sys.executable, [sys.executable, "-c", _PROGRAM, *command[1:]]
