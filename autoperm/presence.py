"""Which permutation may vary with which: the law of presence.

The permutations inside the heads of an attention layer are a *wreath product*: heads move as blocks, and each head may
permute its own channels in its own way. So do channels inside the groups of a grouped convolution, and the hidden
units of stacked experts. All follow from one law:

    A factor T may be permuted differently for each position of a factor X if and only if X is present in every tensor
    in which T is present.

Every parameter, every activation and every tensor inside an operation counts. Where X stands twice in a tensor, "the
position of X" says nothing, unless one of the two stands in T's own axis.

An axis may be there without being written. Slots that are sorted by unit of ``X`` (:mod:`autoperm.rules.positions`)
belong each to one unit of ``X``, so ``X`` is present wherever they are; and a tensor whose values are positions along
``X`` is its one-hot tensor, which has the axis ``X``.

A tensor is looked at in **cells**: choose one part of every sum in its axes, and what is left is a plain product of
factors in each axis. A family is read at the part that was chosen. If no part of its axis was chosen, or more than
one, then its axis is not present: the family collapses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .axes import collapse
from .terms import CONSTANT, FACTOR, FAMILY, PRODUCT, SUM, Arranged, Pin, Term, find, has_family, parts_of, pin

Cell = tuple[tuple[Term, ...], ...]
"""The factors of each axis, left to right, without those of length 1."""


class AbsentError(Exception):
    """A family stands in a tensor in which its axis does not."""

    def __init__(self, family: Term) -> None:
        super().__init__()
        self.family = family


def cells(axes: Sequence[Term]) -> Iterator[Cell]:
    """Yield the cells of a tensor.

    Raises:
        AbsentError: for a family whose axis is not present.
    """
    yield from _expand([[find(axis)] for axis in axes], [frozenset() for _ in axes])


def _expand(state: list[list[Term]], chosen: list[frozenset[Term]]) -> Iterator[Cell]:
    for axis, terms in enumerate(state):
        if any(term.kind == PRODUCT for term in terms):
            state = [*state[:axis], flatten(terms), *state[axis + 1 :]]
        for index, term in enumerate(state[axis]):
            if term.kind == SUM:
                for part in parts_of(term):
                    here = [*state[axis][:index], part, *state[axis][index + 1 :]]
                    marks = [*chosen]
                    marks[axis] = chosen[axis] | _marks(part)
                    yield from _expand([*state[:axis], here, *state[axis + 1 :]], marks)
                return
    for axis, terms in enumerate(state):
        for index, term in enumerate(terms):
            if term.kind == FAMILY:
                here = [*terms[:index], _member(term, chosen), *terms[index + 1 :]]
                yield from _expand([*state[:axis], here, *state[axis + 1 :]], chosen)
                return
    yield tuple(tuple(term for term in terms if term.size > 1 and term.kind == FACTOR) for terms in state)


def flatten(terms: Iterable[Term]) -> list[Term]:
    """Return the terms of a row-major product, with constants left out."""
    flat: list[Term] = []
    for term in map(find, terms):
        if term.kind == PRODUCT:
            flat += flatten(term.children)
        elif term.kind != CONSTANT:
            flat.append(term)
    return flat


def _marks(part: Term) -> set[Term]:
    part = find(part)
    return {part, find(part.children[0])} if part.kind == PRODUCT else {part}


def _is_chosen(part: Term, chosen: frozenset[Term]) -> bool:
    part = find(part)
    if part in chosen:
        return True
    return part.kind in (SUM, PRODUCT) and any(_is_chosen(child, chosen) for child in part.children)


def chosen_member(family: Term, part: Term) -> Term | None:
    """Return the member of a family at a part of its axis, or None if that part does not tell."""
    marks = frozenset(_marks(part))
    found = [m for p, m in zip(family.parts, family.children, strict=True) if _is_chosen(p, marks)]
    return find(found[0]) if len({find(member) for member in found}) == 1 else None


def _member(family: Term, chosen: list[frozenset[Term]]) -> Term:
    """Return the member of a family at the part of its axis that was chosen."""
    found = [
        [member for part, member in zip(family.parts, family.children, strict=True) if _is_chosen(part, marks)]
        for marks in chosen
    ]
    matches = [members for members in found if members]
    if len(matches) != 1 or len({find(member) for member in matches[0]}) != 1:
        raise AbsentError(family)
    return find(matches[0][0])


# --- arranged axes, whose slots belong each to a unit of another axis


def pin_disturbed(arranged: Sequence[Arranged], fixed: Iterable[Sequence[Term]]) -> list[Arranged]:
    """Pin what an arranged axis is sorted by, and what was sorted, if something needs the order of the slots.

    Args:
        arranged: the axes; a unit's permutation moves its slots in a way that depends on the data.
        fixed: the terms of all tensors that do not move with the data: the parameters and buffers.

    Returns:
        The arranged axes that are still an axis by themselves: each slot belongs to a unit.
    """
    roots = [find(each.axis) for each in arranged]
    taken = {leaf for axes in fixed for axis in axes for leaf in _factors(axis)}
    kept = []
    for each, root in zip(arranged, roots, strict=True):
        alone = root.kind == FACTOR and root not in taken and roots.count(root) == 1
        if not alone or root.pin is not None:
            why = root.pin or Pin("the order of what is sorted by these positions matters")
            for term in (root, each.by, each.of):
                pin(term, why)
        if alone:
            kept.append(each)
    return kept


def with_units(axes: Sequence[Term], arranged: Sequence[Arranged]) -> list[Term]:
    """Add to a tensor's axes, for each arranged one, the axis to a unit of which each slot belongs."""
    units = {find(each.axis): each.by for each in arranged}
    found = list(axes)
    for axis in axes:
        for leaf in _factors(axis):
            if leaf in units and leaf in flatten([axis]):
                found.append(units[leaf])
            elif leaf in units:  # within a sum: which slots, and so which units, cannot be told
                return list(axes)
    return found


def _factors(term: Term) -> Iterator[Term]:
    term = find(term)
    if term.kind in (PRODUCT, SUM, FAMILY):
        for child in term.children:
            yield from _factors(child)
    else:
        yield term


def settle(tensors: Sequence[Sequence[Term]]) -> None:
    """Collapse every family whose axis is absent somewhere, until none is left."""
    while _collapse_absent(tensors):
        pass


def all_cells(tensors: Sequence[Sequence[Term]], parameters: int) -> dict[Cell, bool]:
    """Return all different cells of settled tensors.

    Args:
        tensors: the terms of every tensor.
        parameters: how many of them, at the start, are parameters.

    Returns:
        For each cell whether it stands in a tensor that is computed (not in parameters alone).
    """
    unique: dict[tuple[Term, ...], bool] = {}
    for index, axes in enumerate(tensors):
        roots = tuple(map(find, axes))
        unique[roots] = unique.get(roots, False) or index >= parameters
    found: dict[Cell, bool] = {}
    for roots, computed in unique.items():
        for cell in cells(roots):
            found[cell] = found.get(cell, False) or computed
    return found


def _collapse_absent(tensors: Iterable[Sequence[Term]]) -> bool:
    """Collapse the families that stand in a tensor without their axis; tell whether there were any."""
    absent = False
    for axes in {tuple(map(find, axes)): None for axes in tensors if any(map(has_family, axes))}:
        while True:
            try:
                for _ in cells(axes):
                    pass
                break
            except AbsentError as error:
                collapse(error.family)
                absent = True
    return absent


def varies_over(found: Iterable[Cell]) -> dict[Term, list[Term]]:
    """For each factor that may move, the factors it may vary over, outermost first.

    When two factors are always present together, the one that was made first is the index of the other.
    """
    allowed: dict[Term, set[Term]] = {}
    for cell in found:
        flat = [term for terms in cell for term in terms]
        single = {term for term in flat if flat.count(term) == 1} if len(set(flat)) != len(flat) else set(flat)
        for terms in cell:
            near = single | {term for term in terms if terms.count(term) == 1}
            for term in terms:
                if term.pin is None:
                    present = near - {term}
                    allowed[term] = allowed[term] & present if term in allowed else present
    over = {
        term: {
            axis
            for axis in axes
            if axis.pin is not None or term not in allowed.get(axis, ()) or (axis.order < term.order)
        }
        for term, axes in allowed.items()
    }
    for term, axes in over.items():  # what an index varies over must be known where the factor is
        over[term] = {axis for axis in axes if over.get(axis, set()) <= axes}
    return {term: sorted(axes, key=lambda axis: (len(over.get(axis, ())), axis.order)) for term, axes in over.items()}
