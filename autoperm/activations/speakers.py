"""Which activations speak for which factor of a specification, and where its units are in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from ..layout import Cell
from ..spec import PermutationSpec
from .capture import Activation, Capture
from .correspondence import correspond

When = Literal["after", "before"]
Which = Literal["first", "last", "all"] | Callable[[Activation], bool]


@dataclass(frozen=True)
class Speaker:
    """A factor in one cell of an activation.

    Attributes:
        factor: its name in the specification.
        activation: where it is.
        cell: the number of the cell in which it is.
        aligned: dimensions of the cell's view: the pinned factors that it varies over.
        path: dimensions of the free factors that it varies over, and its own.
        averaged: dimensions of other free factors: positions of A and B along them cannot be compared.
    """

    factor: str
    activation: Activation
    cell: int
    aligned: tuple[int, ...]
    path: tuple[int, ...]
    averaged: tuple[int, ...]

    def samples(self, cell: Cell, tensor: Tensor) -> Tensor:
        """Return what the factor's units do, in shape (positions of pinned factors, units, samples).

        Args:
            cell: of the activation for the tensor's shape.
            tensor: the activation.
        """
        view = cell.view(tensor)
        front = [*self.aligned, *self.path]
        rest = [dim for dim in range(view.ndim) if dim not in (*front, *self.averaged)]
        view = view.permute(*front, *rest, *self.averaged)
        if self.averaged:
            view = view.flatten(len(front) + len(rest)).mean(-1)
        shape, start, stop = view.shape, len(self.aligned), len(front)
        return view.reshape(prod(shape[:start]), prod(shape[start:stop]), prod(shape[stop:]))


def find_speakers(
    spec: PermutationSpec, capture: Capture, *, when: When = "after", which: Which = "all"
) -> dict[str, list[Speaker]]:
    """Choose for each factor of a specification the activations that speak for it.

    Args:
        spec: of the model that was captured; its factors may have other names than those of the capture.
        capture: a model's activations.
        when: of factors that an elementwise nonlinearity passes on, those right ``"after"`` it or ``"before"`` it; of
            others all that are computed and not only moved, but for what goes into a softmax, which may be masked.
        which: of those the ``"first"``, the ``"last"`` or ``"all"``; or a function that picks from all activations.

    Returns:
        The speakers of each factor, in the order in which the run computes them. Factors that vary over others speak
        for those too; a factor that no activation carries is left out.
    """
    names = correspond(capture.spec, spec)
    found: dict[str, dict[Activation, list[Speaker]]] = {}
    for activation in capture.activations:
        for number, cell in enumerate(capture.cells(activation, activation.shape)):
            for speaker in _in_cell(spec, activation, number, cell, [names.get(name or "") for name in cell.names]):
                found.setdefault(speaker.factor, {}).setdefault(activation, []).append(speaker)
    chosen = {name: _choose(list(carriers), when, which) for name, carriers in found.items()}
    return {
        name: [speaker for activation in activations for speaker in found[name][activation]]
        for name, activations in chosen.items()
        if activations
    }


def _choose(carriers: Sequence[Activation], when: When, which: Which) -> list[Activation]:
    if callable(which):
        return [activation for activation in carriers if which(activation)]
    outside = [activation for activation in carriers if not activation.inside]
    beside = [activation for activation in outside if (activation.nonlinear if when == "after" else activation.feeds)]
    found = beside or [activation for activation in outside if not activation.moved] or outside
    return {"first": found[:1], "last": found[-1:], "all": found}[which]


def _in_cell(
    spec: PermutationSpec, activation: Activation, number: int, cell: Cell, names: Sequence[str | None]
) -> list[Speaker]:
    """Return the speakers of a cell's innermost factors."""
    free = {factor.name for factor in spec.free}
    found = []
    for dim, name in enumerate(names):
        if name not in free or name is None:
            continue
        places = [_beside(outer, dim, names, cell.axes) for outer in spec.factors[name].over]
        over = [place for place in places if place is not None]
        if len(over) < len(places):
            continue
        path = (*(place for place in over if names[place] in free), dim)
        aligned = tuple(place for place in over if names[place] not in free)
        others = (other for other, known in enumerate(names) if known in free and other not in path)
        found.append(Speaker(name, activation, number, aligned, path, tuple(others)))
    outer = {dim for speaker in found for dim in speaker.path[:-1]}
    return [speaker for speaker in found if speaker.path[-1] not in outer]


def _beside(name: str, dim: int, names: Sequence[str | None], axes: Sequence[int]) -> int | None:
    """Return the dimension of a factor, the one on the same axis if there are several; None if it is not clear."""
    found = [other for other, known in enumerate(names) if known == name]
    near = [other for other in found if axes[other] == axes[dim]]
    return near[0] if len(near) == 1 else found[0] if len(found) == 1 else None
