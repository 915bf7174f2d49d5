"""The files that submodels lie in: read a block at a time, whatever their format."""

from hvdkit.merge.files.interface import Info, TensorFile
from hvdkit.merge.files.submodel import Submodel, combined

__all__ = ["Info", "Submodel", "TensorFile", "combined"]
