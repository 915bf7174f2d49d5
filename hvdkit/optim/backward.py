"""Calls a function once when the outermost `backward()` that is now running has finished.

Autograd's own end-of-backward callback belongs to the graph task in which it is queued. Reentrant activation
checkpointing runs a nested backward inside a node of the outer one, so a callback queued from there fires in the
middle of the whole. The nested case shows on the Python stack as the `apply` of an autograd function's backward;
that node's successors in the outer graph run later, in the outer task, and queue the callback from there.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction

_NODE_APPLY = BackwardCFunction.apply.__code__


def outermost_running_node() -> Any:
    """The autograd node inside which this thread's nested backward runs, or None if the backward is not nested."""
    node = None
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is _NODE_APPLY:
            node = frame.f_locals["self"]  # keep going: the last one found is the outermost
        frame = frame.f_back  # type: ignore[assignment]
    return node


def at_end_of_backward(function: Callable[[], None]) -> bool:
    """Arrange for `function` to be called when the running backward ends; call this from a gradient hook.

    Returns whether the present backward is nested in another one. Where it is and no node of the outer graph
    follows, `function` is not called, and the caller must do its work later.
    """
    node = outermost_running_node()
    if node is None:
        Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]
        return False
    queued = False
    handles: list[Any] = []

    def queue_from_outer_task(*_: Any) -> None:
        nonlocal queued
        for handle in handles:
            handle.remove()
        if not queued:
            queued = True
            Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]

    for successor, _ in node.next_functions:
        if successor is not None:
            handles.append(successor.register_prehook(queue_from_outer_task))
    return True
