"""Where in a run a fault can strike: the real functions, wrapped in the process of the victim.

`reach(point)` is called at each of them. hvdkit itself has no hook for tests.

"In a collective" is inside of it: the ranks that are not struck come half a second late to the same collective, and the
victim, which waits for them in it, is struck meanwhile from a thread. What only the main thread can do, such as to
raise, strikes at its entry. "While a part is written" leaves a file of half its length.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

LATE_S = 0.5
_INSIDE_S = 0.2

Reach = Callable[[str], None]


def wrap(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Have `before` called with the arguments of `owner.name` in front of each call of it."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, call)


class Clock:
    """Which step is computed or saved, in this process."""

    def __init__(self, record: Callable[[int], None]) -> None:
        self.step = 0
        self.saved_step = 0
        self.pause_s = 0.0
        """In front of each step, so that what comes from outside does not come too late."""
        self._record = record

    def begin_step(self, loop: Any) -> None:
        """In front of a step of the loop."""
        self.step = loop.step + 1
        self._record(self.step)
        time.sleep(self.pause_s)

    def begin_save(self, saver: Any, step: int, *args: Any, **kwargs: Any) -> None:
        """In front of a save."""
        self.saved_step = step


def install(point: str, reach: Reach, clock: Clock) -> None:
    """Have `reach(point)` called wherever a run comes to `point`, and `clock` follow its steps."""
    from hvdkit.checkpoint.saver import Saver
    from hvdkit.train.job import Job
    from hvdkit.train.loop import Loop
    from hvdkit.train.resume import Resumed

    def reached(*args: Any, **kwargs: Any) -> None:
        reach(point)

    places: dict[str, Callable[[], None]] = {
        "setup": lambda: wrap(Job, "_make_folder", reached),
        "step": lambda: wrap(Loop, "_one_step", reached),
        "backward": lambda: _in_backward(reach),
        "write": lambda: _while_writing(reach),
        "commit": lambda: wrap(Saver, "_commit", reached),
        "publish": lambda: _in_module("hvdkit.checkpoint.saver", "publish_folder", reached),
        "prune": lambda: _while_deleting(reach),
        "end": lambda: _in_module("hvdkit.train.job", "summarise", reached),
        "resume": lambda: wrap(Resumed, "restore", reached),
    }
    if point in places:
        places[point]()
    elif point == "collective":
        _at_collectives(lambda: reach("collective"))
    wrap(Saver, "save", clock.begin_save)
    wrap(Loop, "_one_step", clock.begin_step)


def _at_collectives(before: Callable[[], None]) -> None:
    """Hvdkit's own collectives, and those of Horovod's engine."""
    from hvdkit.collectives.calls import Calls
    from hvdkit.collectives.horovod_engine import HorovodEngine

    wrap(Calls, "meet", lambda *args, **kwargs: before())
    wrap(HorovodEngine, "all_reduce_async_", lambda *args, **kwargs: before())


def soon(work: Callable[[], None]) -> None:
    """Do `work` on a thread, when this one has gone into its collective."""

    def wait_and_work() -> None:
        time.sleep(_INSIDE_S)
        work()

    threading.Thread(target=wait_and_work, daemon=True).start()


def _in_module(module: str, name: str, before: Callable[..., None]) -> None:
    import importlib

    wrap(importlib.import_module(module), name, before)


def _in_backward(reach: Reach) -> None:
    """When the gradients of the upper half of the model are there, and those of the lower are not."""
    import hvdkit.train.loop as loop

    original = loop.mean_loss

    def mean_loss(model: torch.nn.Module, *args: Any) -> torch.Tensor:
        modules = [module for module in model.modules() if not list(module.children())]
        middle = modules[len(modules) // 2]

        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: reach("backward"))

        handle = middle.register_forward_hook(hook)
        try:
            return original(model, *args)  # type: ignore[arg-type]
        finally:
            handle.remove()

    loop.mean_loss = mean_loss  # type: ignore[assignment]


def _while_writing(reach: Reach) -> None:
    import hvdkit.checkpoint.parts as parts

    original = parts.write_tensors

    def write_tensors(path: Path, tensors: Any) -> str:
        digest = original(path, tensors)
        if path.stat().st_size:
            content = path.read_bytes()
            os.truncate(path, len(content) // 2)
            reach("write")
            path.write_bytes(content)
        return digest

    parts.write_tensors = write_tensors


def _while_deleting(reach: Reach) -> None:
    import hvdkit.files.durable as durable

    rmtree = durable.shutil.rmtree

    def half(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.endswith(".old"):
            (path / "manifest.json").unlink()
            reach("prune")
        rmtree(path, *args, **kwargs)

    durable.shutil = SimpleNamespace(rmtree=half)  # type: ignore[assignment]
