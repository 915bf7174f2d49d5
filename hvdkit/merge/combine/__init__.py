"""How the tensors or task vectors of submodels become one: a file per family of combiners.

Most are linear: sum_i c_i x_i, with coefficients that come from the weights and perhaps from the angles between the
submodels, which the Gram matrix of all x_i holds. So they need no tensor whole, and of the angles between
submodels on different hosts only small matrices travel. `consensus` is the one that looks at each element.
"""

from hvdkit.merge.combine.average import average, total
from hvdkit.merge.combine.consensus import consensus
from hvdkit.merge.combine.interface import Elementwise, Linear
from hvdkit.merge.combine.spherical import spherical
from hvdkit.merge.combine.stock import stock

COMBINERS: dict[str, Linear | Elementwise] = {
    "average": Linear(average),
    "sum": Linear(total),
    "spherical": Linear(spherical, needs_gram=True),
    "stock": Linear(stock, needs_gram=True),
    "consensus": Elementwise(consensus),
}

__all__ = ["COMBINERS", "Elementwise", "Linear"]
