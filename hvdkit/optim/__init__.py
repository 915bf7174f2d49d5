"""`DistributedOptimizer`: any torch optimizer, its gradients aggregated over all ranks while backward runs."""

from hvdkit.optim.distributed import DistributedOptimizer
from hvdkit.optim.options import Statistics

__all__ = ["DistributedOptimizer", "Statistics"]
