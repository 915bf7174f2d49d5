"""`DistributedOptimizer`: any torch optimizer, its gradients aggregated over all ranks while backward runs."""

from hvdkit.optim.distributed import DistributedOptimizer
from hvdkit.optim.reducer import Statistics

__all__ = ["DistributedOptimizer", "Statistics"]
