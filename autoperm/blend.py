"""Interpolate between two state dicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import SpecError
from .state import check_same_architecture, interpolates


def lerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> dict[str, Tensor]:
    """Interpolate linearly between two state dicts.

    For every floating or complex tensor

        theta(lam) = (1 - lam) theta_A + lam theta_B

    in the tensor's own dtype. The ends are exact: ``lam=0`` gives A and ``lam=1`` gives B bitwise, and where A
    and B are equal so is every point between. Integer and boolean tensors (``num_batches_tracked``, index
    tables) are taken from A. Two names that share memory give equal values, not shared memory; loading the
    result in a model that ties them keeps the tie.

    Args:
        a: State dict of model A.
        b: State dict of model B, with the same names, shapes, dtypes and devices.
        lam: Position in [0, 1]; 0 is A and 1 is B.

    Returns:
        A new state dict with A's order of names. Its tensors share no memory with the inputs.

    Raises:
        ArchitectureError: If the state dicts differ in names, shapes, dtypes or devices.
        SpecError: If ``lam`` is outside [0, 1].

    Example:
        >>> lerp({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 8.0])}, 0.25)
        {'w': tensor([0.2500, 5.0000])}

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Definition 2.2, in which theta(lam) is the argument of the loss.
    """
    if not 0.0 <= lam <= 1.0:
        raise SpecError(f"lam is {lam}, but a position between model A (0) and model B (1) is in [0, 1]")
    check_same_architecture(a, b)
    return {name: _lerp(a[name].detach(), b[name].detach(), lam) for name in a}


def _lerp(a: Tensor, b: Tensor, lam: float) -> Tensor:
    # torch.lerp turns -0.0 at an end into 0.0, which is not bitwise.
    if lam == 0.0 or not interpolates(a):
        return a.clone()
    if lam == 1.0:
        return b.clone()
    return torch.lerp(a, b, lam)
