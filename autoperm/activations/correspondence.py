"""Which factors of two specifications of one model are the same: by the units of parameters that they number.

Names say nothing: one specification may have been discovered, the other written by hand or read from a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..layout import cells
from ..signature import Term
from ..spec import PermutationSpec


def correspond(first: PermutationSpec, second: PermutationSpec) -> dict[str, str]:
    """Return for factors of one specification the same factors of another.

    Two factors are the same if on some axis of a tensor they number the same positions in the same way. Factors that
    the other specification does not have, because it pins them or cuts axes otherwise, are left out, and so are those
    that are several of its factors.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(6, 4)
        >>> first = PermutationSpec.from_patterns({"weight": "a (h=2 d=3)"}, net)
        >>> second = PermutationSpec.from_patterns({"weight": "_ (x=2 y=3)"}, net)
        >>> correspond(first, second)
        {'h': 'x', 'd': 'y'}
    """
    units_first, units_second = _numbering(first), _numbering(second)
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for tensor, pattern in first.patterns.items():
        if first.shapes[tensor] != second.shapes.get(tensor):
            continue
        for term, other, size in zip(pattern, second.patterns[tensor], first.shapes[tensor], strict=True):
            for name, units in units_first(term, size).items():
                for candidate, others in units_second(other, size).items():
                    if torch.equal(units, others):
                        found[name][candidate] = None
    return {name: next(iter(same)) for name, same in found.items() if len(same) == 1}


def _numbering(spec: PermutationSpec) -> Callable[[Term, int], dict[str, Tensor]]:
    @cache
    def units(term: Term, size: int) -> dict[str, Tensor]:
        """For each factor of an axis, the number of the unit at each position; -1 where the factor is not."""
        axis = PermutationSpec({"axis": (term,)}, {"axis": (size,)}, spec.factors)
        found: dict[str, Tensor] = {}
        twice: set[str] = set()
        for cell in cells(axis, "axis"):
            for dim, name in enumerate(cell.names):
                if name is None:
                    continue
                if cell.names.count(name) > 1:
                    twice.add(name)
                numbers = cell.view(found.setdefault(name, torch.full((size,), -1)))
                numbers.copy_(torch.arange(numbers.shape[dim]).reshape(-1, *[1] * (numbers.ndim - dim - 1)))
        return {name: numbers for name, numbers in found.items() if name not in twice}

    return units
