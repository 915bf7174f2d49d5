"""Horovod's elastic training by its own names: workers come and go, no sample is lost or repeated.

Guaranteed, for an `ElasticSampler` in a `TorchState` that is committed between steps: within an epoch, counted at the
committed state, every sample contributes to exactly one step. After a lost worker the samples since the last commit
are trained again, exactly once, since their effect on the weights was undone too; after hosts changed gracefully
nothing is repeated. Needs `horovodrun --gloo`.
"""

from hvdkit.elastic.loop import run
from hvdkit.elastic.sampler import ElasticSampler
from hvdkit.elastic.state import ObjectState, State, TorchState

__all__ = ["ElasticSampler", "ObjectState", "State", "TorchState", "run"]
