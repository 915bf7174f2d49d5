"""Gradient hooks: how a reducer learns that a parameter's gradient is complete."""

from typing import Any, Protocol

import torch


class HookOwner(Protocol):
    """Who is told."""

    def on_gradient(self, index: int) -> None:
        """The gradient of parameter `index` was accumulated into `.grad`."""

    def release(self, index: int) -> None:
        """Another owner takes over parameter `index`."""


class GradientHook:
    """Tells its owner that a parameter's gradient is complete. A parameter has at most one."""

    def __init__(self, owner: HookOwner, index: int, parameter: torch.Tensor) -> None:
        self._owner, self._index = owner, index
        for other in list((parameter._post_accumulate_grad_hooks or {}).values()):
            if isinstance(other, GradientHook):
                other._owner.release(other._index)
        self._handle: Any = parameter.register_post_accumulate_grad_hook(self)

    def __call__(self, parameter: torch.Tensor) -> None:
        self._owner.on_gradient(self._index)

    def remove(self) -> None:
        """Stop telling."""
        self._handle.remove()
