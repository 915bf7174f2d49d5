"""Adasum: each rank steps on its own gradient, and the changes of the parameters are combined.

Source: S. Maleki et al., "Scaling Distributed Training with Adaptive Summation", arXiv:2006.02924, as in Horovod:
the combination runs per parameter on Horovod's engine and needs a number of ranks that is a power of 2.
"""

from collections.abc import Callable
from typing import Any

import torch

from hvdkit.collectives import Collectives


def adasum_step(
    optimizer: Any, step: Callable[..., Any], closure: Callable[[], Any] | None, collectives: Collectives | None
) -> Any:
    """Run the plain `step`, then replace every parameter's change by the Adasum of all ranks' changes. Collective."""
    if collectives is None or collectives.size == 1:
        return step(optimizer, closure)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    compression = optimizer._settings.options.compression
    with torch.no_grad():
        before = [parameter.detach().clone() for parameter in parameters]
    loss = step(optimizer, closure)
    with torch.no_grad():
        works = []
        for number, (parameter, start) in enumerate(zip(parameters, before, strict=True)):
            tensor, context = compression.compress((parameter - start).contiguous())
            works.append((collectives.all_reduce_async_(tensor, f"hvdkit.adasum.{number}", op="adasum"), context))
        for parameter, start, (work, context) in zip(parameters, before, works, strict=True):
            parameter.copy_(start + compression.decompress(work.wait(), context))
    return loss
