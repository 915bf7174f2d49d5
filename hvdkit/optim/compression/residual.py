"""What a rank has not sent yet, kept for the next step: error feedback.

Sources: F. Seide et al., "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training
of Speech DNNs", Interspeech 2014; S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient
Compression Schemes", arXiv:1901.09847. With contribution g and residual e, send C(g + e) and keep e = g + e - C(g + e):
over any number of steps, what was sent differs from the true sum by the last residual alone.
"""

from collections.abc import Sequence

import torch

from hvdkit.collectives import Collectives
from hvdkit.optim.compression.interface import ParameterState


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What residuals and sums are kept in: float64 for float64 and complex128, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def real_shapes(shapes: Sequence[torch.Size], dtype: torch.dtype) -> list[torch.Size]:
    """The shapes of the parameters as real tensors: complex ones get a last dimension of 2."""
    return [torch.Size((*shape, 2)) if dtype.is_complex else shape for shape in shapes]


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the bucket's flat tensor."""
    return dtype.to_real() if dtype.is_complex else dtype


class Residual:
    """One flat buffer, (n,) float32 or float64, zeros at first, and a view of it per parameter."""

    def __init__(self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        counts = [shape.numel() for shape in shapes]
        self.flat = torch.zeros(sum(counts), dtype=working_dtype(dtype), device=device)
        self.views = [part.view(shape) for part, shape in zip(self.flat.split(counts), shapes, strict=True)]

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`."""
        return [{"error": view} for view in self.views]

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        restore(self.state_dict(), state)


def restore(current: Sequence[ParameterState], saved: Sequence[ParameterState]) -> None:
    """Copy the `saved` tensors into the `current` ones, and zero those that were not saved.

    Raises ValueError, before anything is changed, where their numbers or shapes differ.
    """
    if len(saved) != len(current):
        raise ValueError(
            f"compression state: it was saved for {len(saved)} parameters, this bucket has {len(current)}; load one "
            "dict per parameter of the bucket, in its order"
        )
    for number, (mine, theirs) in enumerate(zip(current, saved, strict=True)):
        for key, tensor in mine.items():
            if key in theirs and theirs[key].shape != tensor.shape:
                raise ValueError(
                    f"compression state: {key!r} of parameter {number} was saved with shape "
                    f"{tuple(theirs[key].shape)}, here it has {tuple(tensor.shape)}; load it with the options and "
                    "parameters that it was saved with, or leave it out to start anew"
                )
    with torch.no_grad():
        for mine, theirs in zip(current, saved, strict=True):
            for key, tensor in mine.items():
                if key in theirs:
                    tensor.copy_(theirs[key])
                else:
                    tensor.zero_()


def check_flat(flat: torch.Tensor, count: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless `flat` is (count,) of `dtype`, contiguous."""
    if flat.shape != (count,) or flat.dtype != dtype or not flat.is_contiguous():
        raise ValueError(
            f"compression: got shape {tuple(flat.shape)}, {flat.dtype}, {'' if flat.is_contiguous() else 'not '}"
            f"contiguous; this bucket needs shape ({count},), {dtype}, contiguous"
        )


def average_errors(states: Sequence[ParameterState], name: str, collectives: Collectives) -> list[ParameterState]:
    """`states` with every "error" replaced by its mean over ranks, the rest as it is: what one rank can save for all.

    Loaded on every rank, the errors sum to what they summed to, so nothing of the gradient is lost (each rank's own
    part is). Collective; `states` lists the same parameters on every rank. One all-reduce per parameter.
    """
    averaged = []
    for number, state in enumerate(states):
        copied = {key: tensor.clone() for key, tensor in state.items()}
        if "error" in copied:
            work = collectives.all_reduce_async_(copied["error"], f"{name}.{number}", op="average")
            copied["error"] = work.wait()
        averaged.append(copied)
    return averaged
