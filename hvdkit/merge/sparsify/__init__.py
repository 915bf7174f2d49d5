"""What a rule leaves out of a task vector: a file per sparsifier, each working on one block at a time.

A sparsifier that looks at magnitudes names the order statistics that it needs of the whole tensor; they are found in
passes over its blocks (`hvdkit.merge.order_statistics`), so that no tensor has to be in memory whole.
"""

from hvdkit.merge.sparsify.breadcrumbs import Breadcrumbs
from hvdkit.merge.sparsify.dare import Dare
from hvdkit.merge.sparsify.della import Della
from hvdkit.merge.sparsify.interface import Place, Sparsifier
from hvdkit.merge.sparsify.magnitude import Magnitude

SPARSIFIERS: dict[str, Sparsifier] = {
    "magnitude": Magnitude(),
    "dare": Dare(),
    "della": Della(),
    "breadcrumbs": Breadcrumbs(),
}

__all__ = ["SPARSIFIERS", "Place", "Sparsifier"]
