"""Whether all ranks were started alike: compared before anything else, so that a difference is named and not hung on.

Ranks send each other short texts: every option, versions, a hash of hvdkit's source files, and the model's parameters.
What the environment holds is compared only where it shows in these.
"""

import hashlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from hvdkit.errors import DivergenceError
from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.words import who_has_what
from hvdkit.train.config import TrainConfig

_MOST_NAMED = 5
_NOTHING = "not there"


def check_same_start(world: World, config: TrainConfig) -> None:
    """Raise DivergenceError on all ranks unless they have the same options, versions and sources. Collective."""
    if world.size == 1:
        return
    mine = {f"--{name.replace('_', '-')}": _shown(value) for name, value in vars(config).items()}
    mine |= {
        "the version of Python": platform.python_version(),
        "the version of torch": torch.__version__,
        "the version of Horovod": str(getattr(horovod("horovod"), "__version__", "unknown")),
        "the version of hvdkit": sys.modules["hvdkit"].__version__,
    }
    mine |= {f"hvdkit/{name}": digest for name, digest in _sources().items()}
    compare(world, mine, "every rank must run the same command with the same software")


def check_same_model(world: World, model: torch.nn.Module) -> None:
    """Raise DivergenceError on all ranks unless their models have the same parameters. Collective."""
    if world.size == 1:
        return
    mine = {
        f"parameter {name}": f"{'x'.join(map(str, p.shape)) or 'a number'} {str(p.dtype).removeprefix('torch.')}"
        f"{'' if p.requires_grad else ', frozen'}"
        for name, p in model.named_parameters()
    }
    mine["the order of the parameters"] = _hash(" ".join(mine).encode())
    compare(world, mine, "every rank must build the same model")


def compare(world: World, mine: Mapping[str, str], rule: str) -> None:
    """Raise DivergenceError on all ranks, with what differs and where, unless `mine` is the same on all. Collective.

    Digests go first; the texts follow only where those differ.
    """
    digests = gather_objects(world, _hash(repr(sorted(mine.items())).encode()))
    if len(set(digests)) == 1:
        return
    everyone = gather_objects(world, dict(mine))
    names = list(dict.fromkeys(name for one in everyone for name in one))
    faults = []
    for name in names:
        values = [one.get(name, _NOTHING) for one in everyone]
        if len(set(values)) > 1:
            faults.append(f"{name} is {who_has_what(values)}")
    more = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
    raise DivergenceError(f"ranks disagree: {'; '.join(faults[:_MOST_NAMED])}{more}. {rule[0].upper()}{rule[1:]}")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sources() -> dict[str, str]:
    """A hash of each source file of hvdkit, as it lies on this rank's disk."""
    folder = Path(__file__).parents[1]
    files = sorted(folder.rglob("*.py"))
    return {str(file.relative_to(folder)): f"version {_hash(file.read_bytes())}" for file in files}


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()
