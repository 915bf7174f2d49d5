"""Progress: a bar that is redrawn on a terminal, whole lines in a pipe."""

import io
import os
import re

import pytest

from hvdkit.horovod_build.progress import Progress

pytestmark = pytest.mark.launch  # nothing here depends on the number of ranks


def test_whole_lines_in_a_pipe() -> None:
    stream = io.StringIO()
    with Progress("build", stream, every_s=0) as progress:
        progress.show(0, "configuring")
        progress.show(42, "compiling")
    assert re.fullmatch(r"build:   0%, \d+ s, configuring\nbuild:  42%, \d+ s, compiling\n", stream.getvalue())


def test_at_most_one_line_in_ten_seconds_in_a_pipe() -> None:
    stream = io.StringIO()
    with Progress("build", stream) as progress:
        for percent in range(100):
            progress.show(percent, "compiling")
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal_whose_line_is_ended() -> None:
    ours, theirs = os.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream, Progress("build", stream, every_s=0) as progress:
            progress.show(0, "configuring")
            progress.show(50, "compiling")
        drawn = ""
        while not drawn.endswith("\r\n"):  # as the terminal writes the end of a line
            drawn += os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    first, second = drawn.removesuffix("\r\n").split("\r")[1:]
    assert "[" + "." * 30 + "]   0%" in first and "configuring" in first
    assert "[" + "#" * 15 + "." * 15 + "]  50%" in second and "compiling" in second
