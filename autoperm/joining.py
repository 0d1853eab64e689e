"""Axes of several tensors brought together: broadcast, or joined to one. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from .axes import make_rigid, meet, unify
from .terms import Term, factor, family, find, has_family, is_pinned, total


def broadcast(operands: Sequence[Sequence[Term]]) -> list[Term]:
    """Meet axes that are aligned from the right; an axis of length 1 gives way.

    Axes without families go first: families over two axes are compared by part, once the two axes are known to be one.
    """
    ndim = max(map(len, operands))
    columns: list[list[Term]] = []
    for place in range(-ndim, 0):
        column = [find(axes[place]) for axes in operands if -place <= len(axes)]
        columns.append([term for term in column if term.size != 1] or column[:1])
    found = [column[0] for column in columns]
    for families in (False, True):
        for place, column in enumerate(columns):
            if any(map(has_family, column)) == families:
                for term in column[1:]:
                    found[place] = meet(found[place], term)
    return found


def concatenate(tensors: Sequence[Sequence[Term]], dim: int) -> list[Term]:
    """Join tensors along an axis: that axis becomes a sum, every other a family over it.

    Args:
        tensors: the terms of each tensor; all have the same number of axes.
        dim: the axis along which they are joined.
    """
    tensors = [tensor for tensor in tensors if tensor[dim].size > 0] or tensors[:1]
    if len(tensors) == 1:
        return list(tensors[0])
    # Parts of length 1 are new ones: the same slice may be joined twice, as two different parts.
    parts = [factor(1) if tensor[dim].size == 1 else find(tensor[dim]) for tensor in tensors]
    joined = total(parts)
    result = []
    for axis in range(len(tensors[0])):
        terms = [find(tensor[axis]) for tensor in tensors]
        if axis == dim:
            result.append(joined)
        elif all(map(is_pinned, terms)):
            for term in terms[1:]:
                unify(terms[0], term)
            result.append(terms[0])
        else:
            for term in terms:
                make_rigid(term, [joined])
            result.append(family(joined, parts, terms))
    return result
