"""Horovod's elastic training by its own names: workers come and go, no sample is lost or repeated.

Guaranteed, for an `ElasticSampler` in a `TorchState` that is committed between steps: within an epoch, counted at the
committed state, every sample contributes to exactly one step. After a lost worker the samples since the last commit
are trained again, exactly once, since their effect on the weights was undone too; after hosts changed gracefully
nothing is repeated. Needs `horovodrun --gloo`.

Horovod 0.28.1 breaks this in the following ways, each with the file that mends it:

- Where workers only left, the sampler is not dealt anew: the samples of those that left are lost (`loop`).
- `set_epoch` at the top of an epoch begins the epoch under way again after every reset (`sampler`).
- The last samples are padded with repeated ones, or stop the job with an AssertionError where few are left (`sampler`).
- A pass that was broken off and begun again without a reset starts where the last reset was (`sampler`).
- A worker that joined and loses the others before its first commit goes back to its very beginning, weights, optimizer
  and sampler, and whoever joins then follows it (`state`).
- After a graceful reset between commits weights are new and plain attributes old (`state`).
- Lists and other values that change in place are not rolled back (`state`). After a rollback optimizer and commit share
  their tensors, so that a second rollback finds momentum changed; and gradients of the failed step stay, which the next
  backward of a script that calls `zero_grad` after each step adds to (`handlers`).
- A worker that joins while others leave waits for ever for a state that nobody sends; news of hosts that comes during
  a reset is thrown away; an exception in a restart ends the worker (`loop`).
"""

from hvdkit.elastic.loop import run
from hvdkit.elastic.sampler import ElasticSampler
from hvdkit.elastic.state import ObjectState, State, TorchState

__all__ = ["ElasticSampler", "ObjectState", "State", "TorchState", "run"]
