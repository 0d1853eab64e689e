"""Repair the statistics of a model between others, wherever a path is evaluated or models are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from .batch_norm import reestimate
from .batches import check_rereadable
from .errors import SpecError, quoted
from .repair import Repair

Renormalize = Callable[[nn.Module, Sequence[float]], nn.Module]
"""``renormalize(model, weights)``: the model to evaluate in place of the one whose parameters are the weighted mean of
the ends'. It may change the model that it is given, and return it."""


class Renormalizer(Protocol):
    """What renormalises the models between some ends."""

    def bind(self, models: Sequence[nn.Module], /) -> Renormalize:
        """Look at the ends, which stay as they are, and return what renormalises the models between them."""
        ...


@dataclass(frozen=True, eq=False)
class ReestimateBatchNorm:
    """Re-estimate the running statistics of BatchNorm layers: see :func:`~autoperm.renormalize_batch_norm`.

    Attributes:
        data: batches of training data, which can be read more than once.
        batches: how many of them to read; all by default.
    """

    data: Iterable[Any] = field(repr=False)
    batches: int | None = None

    def __post_init__(self) -> None:
        """Check that the data can be read at every point."""
        check_rereadable(self.data)

    def bind(self, models: Sequence[nn.Module], /) -> Renormalize:
        """Return what renormalises a model in place; the ends do not matter."""
        return lambda model, weights: reestimate(model, self.data, batches=self.batches)


_NAMES: dict[str, Callable[[Iterable[Any]], Renormalizer]] = {"batch_norm": ReestimateBatchNorm, "repair": Repair}


def get_renormalizer(renormalize: str | Renormalizer | None, data: Iterable[Any] | None) -> Renormalizer | None:
    """Return what a name stands for, with its data.

    Raises:
        SpecError: if there is no such name, it lacks data, or there are data that nothing reads.
    """
    if renormalize is None:
        if data is not None:
            named = " or ".join(f"'{name}'" for name in _NAMES)
            raise SpecError(f"data is given, but only renormalize={named} reads it; add that, or leave data out")
        return None
    names = quoted(_NAMES)
    if not isinstance(renormalize, str):
        if isinstance(renormalize, type) or not hasattr(renormalize, "bind"):
            raise SpecError(f"renormalize is {renormalize!r}; choose {names}, or an object such as Repair(data)")
        if data is not None:
            raise SpecError("data is given, but the renormalizer holds its own; leave data out")
        return renormalize
    if renormalize not in _NAMES:
        raise SpecError(f"there is no renormalizer '{renormalize}'; choose {names}, or None")
    if data is None:
        raise SpecError(f"renormalize='{renormalize}' needs data=..., a loader of training data")
    return _NAMES[renormalize](data)
