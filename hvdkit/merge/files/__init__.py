"""The files that submodels lie in: read a block at a time, whatever their format."""

from hvdkit.merge.files.interface import Info, TensorFile
from hvdkit.merge.files.submodel import Submodel, combined, file_in

__all__ = ["Info", "Submodel", "TensorFile", "combined", "file_in"]
