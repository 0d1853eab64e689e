"""Which permutation may vary with which: the law of presence.

The permutations inside the heads of an attention layer are a *wreath product*: heads move as blocks, and each head may
permute its own channels in its own way. So do channels inside the groups of a grouped convolution, and the hidden
units of stacked experts. All follow from one law:

    A factor T may be permuted differently for each position of a factor X if and only if X is present in every tensor
    in which T is present.

Every parameter, every activation and every tensor inside an operation counts. Where X stands twice in a tensor, "the
position of X" says nothing, unless one of the two stands in T's own axis. An operation that may put T beside the other
of the two (a view) has a tensor inside in which T stands alone.

An axis may be there without being written. Slots that are sorted by unit of ``X`` (:mod:`autoperm.rules.positions`)
belong each to one unit of ``X``, so ``X`` is present wherever they are; and a tensor whose values are positions along
``X`` is its one-hot tensor, which has the axis ``X``.

A tensor is looked at in **cells**: choose one part of every sum in its axes, and what is left is a plain product of
factors in each axis. A family is read at the part that was chosen. If no part of its axis was chosen, or more than
one, then its axis is not present: the family collapses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from .axes import collapse
from .terms import (
    APART,
    CONSTANT,
    FACTOR,
    FAMILY,
    PRODUCT,
    SUM,
    Arranged,
    Pin,
    Term,
    find,
    has_family,
    is_pinned,
    leaves_of,
    members_of,
    parts_of,
    pin,
)

Row = tuple[Term, ...]
"""What stands in one axis of a cell, left to right, without what has length 1."""

Cell = tuple[Row, ...]
"""The factors of each axis. A sum that is pinned, and that no family depends on, stands for all its parts."""

Choice = tuple[Row, frozenset[Term]]
"""What stands in an axis once parts of its sums are chosen, and the marks of those parts."""


class AbsentError(Exception):
    """A family stands in a tensor in which its axis does not."""

    def __init__(self, family: Term) -> None:
        super().__init__()
        self.family = family


class Members:
    """The members of families, by the parts of their axes; valid as long as no term changes."""

    def __init__(self) -> None:
        self._found: dict[Term, dict[Term, Term | None]] = {}

    def told_by(self, family: Term) -> dict[Term, Term | None]:
        """Return the member that each part, or what is inside of it, tells; None if it is part of several."""
        if family not in self._found:
            found: dict[Term, Term | None] = {}
            for part, member in members_of(family):
                for mark in _inside(part):
                    found[mark] = member if found.get(mark, member) is member else None
            self._found[family] = found
        return self._found[family]

    def at(self, family: Term, marks: Iterable[Term]) -> list[Term | None]:
        """Return the members that marks tell: none, one, or several (None: a mark that tells several)."""
        told = self.told_by(family)
        return list({told[mark]: None for mark in marks if mark in told})

    def at_part(self, family: Term, part: Term) -> Term | None:
        """Return the member at a part of the family's axis, or None if that part does not tell."""
        found = self.at(family, _marks(part))
        return find(found[0]) if len(found) == 1 and found[0] is not None else None


def _inside(part: Term) -> Iterator[Term]:
    stack = [part]
    while stack:
        part = find(stack.pop())
        yield part
        if part.kind in (SUM, PRODUCT):
            stack += part.children


def _marks(part: Term) -> set[Term]:
    part = find(part)
    return {part, find(part.children[0])} if part.kind == PRODUCT else {part}


def cells(axes: Sequence[Term], known: dict[Term, list[Choice]] | None = None) -> Iterator[Cell]:
    """Yield the cells of a tensor.

    Args:
        axes: the terms of the tensor.
        known: choices of axes that have been read before, for tensors without families; more are added.

    Raises:
        AbsentError: for a family whose axis is not present.
    """
    roots = [find(axis) for axis in axes]
    families = [inner for root in roots for inner in _families(root)]
    if families:
        yield from _Reader(families).cells(roots)
        return
    known = {} if known is None else known
    for root in roots:
        if root not in known:
            known[root] = list(_Reader(()).choices([root]))
    for choices in itertools.product(*(known[root] for root in roots)):
        yield tuple(row for row, _ in choices)


def _families(term: Term) -> Iterator[Term]:
    """Yield the families inside a term, and inside their members."""
    if not has_family(term):
        return
    stack = [term]
    while stack:
        term = find(stack.pop())
        if term.kind == FAMILY:
            stack += [member for _, member in members_of(term)]
            yield term
        else:
            stack += term.children


class _Reader:
    """Reads a tensor's cells: chooses parts of sums, and the members of families that stand at these parts."""

    def __init__(self, families: Iterable[Term]) -> None:
        self.members = Members()
        self.telling = {mark for family in families for mark in self.members.told_by(family)}

    def cells(self, axes: Sequence[Term]) -> Iterator[Cell]:
        for choices in itertools.product(*(list(self.choices([axis])) for axis in axes)):
            yield from self._resolve(choices)

    def choices(self, terms: Sequence[Term], marks: frozenset[Term] = frozenset()) -> Iterator[Choice]:
        """Choose one part of every sum in a product of terms."""
        flat = flatten(terms)
        for index, term in enumerate(flat):
            if term.kind == SUM and not self._is_unit(term):
                for part in parts_of(term):
                    yield from self.choices([*flat[:index], part, *flat[index + 1 :]], marks | _marks(part))
                return
        yield tuple(term for term in flat if term.size > 1), marks

    def _is_unit(self, term: Term) -> bool:
        """Tell whether it does not matter which part of a sum is chosen."""
        parts = parts_of(term)
        if not all(is_pinned(part) or part.kind == CONSTANT for part in parts):
            return False
        if self.telling and any(not self.telling.isdisjoint(_marks(part)) for part in parts):
            return False
        pin(term, next((inner.pin for part in parts for inner in _inside(part) if inner.pin is not None), APART))
        return True

    def _resolve(self, choices: tuple[Choice, ...]) -> Iterator[Cell]:
        """Put members for families."""
        for axis, (row, marks) in enumerate(choices):
            for index, term in enumerate(row):
                if term.kind == FAMILY:
                    member = self._chosen(term, choices)
                    for found in self.choices([*row[:index], member, *row[index + 1 :]], marks):
                        yield from self._resolve((*choices[:axis], found, *choices[axis + 1 :]))
                    return
        yield tuple(row for row, _ in choices)

    def _chosen(self, family: Term, choices: tuple[Choice, ...]) -> Term:
        """Return the member of a family at the part of its axis that was chosen."""
        found = [members for _, marks in choices if (members := self.members.at(family, marks))]
        member = found[0][0] if len(found) == 1 and len(found[0]) == 1 else None
        if member is None:
            raise AbsentError(family)
        return member


def flatten(terms: Iterable[Term]) -> list[Term]:
    """Return the terms of a row-major product, with constants left out."""
    flat: list[Term] = []
    for term in map(find, terms):
        if term.kind == PRODUCT:
            flat += flatten(term.children)
        elif term.kind != CONSTANT:
            flat.append(term)
    return flat


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
    taken = {leaf for axes in fixed for axis in axes for leaf in leaves_of(axis)}
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
    for term in (term for axis in axes for term in flatten([axis])):
        if term in units:
            found.append(units[term])
        elif any(leaf in units for leaf in leaves_of(term)):  # in a sum it is not told which slots
            return list(axes)
    return found


def settle(tensors: Sequence[Sequence[Term]]) -> None:
    """Collapse every family whose axis is absent somewhere, until none is left."""
    while _collapse_absent(tensors):
        pass


def all_cells(tensors: Sequence[Sequence[Term]], unused: int) -> dict[Cell, bool]:
    """Return all different cells of settled tensors.

    Args:
        tensors: the terms of every tensor.
        unused: how many of them, at the start, do not say that what stands in them is used: parameters, and what only
            moves numbers.

    Returns:
        For each cell whether it stands in a tensor that says so.
    """
    unique: dict[tuple[Term, ...], bool] = {}
    for index, axes in enumerate(tensors):
        roots = tuple(map(find, axes))
        unique[roots] = unique.get(roots, False) or index >= unused
    found: dict[Cell, bool] = {}
    known: dict[Term, list[Choice]] = {}
    for roots, computed in unique.items():
        for cell in cells(roots, known):
            found[cell] = found.get(cell, False) or computed
    return found


def _collapse_absent(tensors: Iterable[Sequence[Term]]) -> bool:
    """Collapse the families that stand in a tensor without their axis; tell whether there were any."""
    collapsed = False
    found = {tuple(map(find, axes)): None for axes in tensors if any(map(has_family, axes))}
    # Small tensors first: where an axis is gone, its families collapse before they are read at all its parts.
    for axes in sorted(found, key=lambda axes: sum(len(parts_of(axis)) for axis in axes)):
        while family := _absent_family(axes):
            collapse(family)
            collapsed = True
    return collapsed


def _absent_family(axes: Sequence[Term]) -> Term | None:
    """Return a family of a tensor whose axis is not present, or whose members are one already."""
    for axis in axes:
        for family in _families(axis):
            if len({member for _, member in members_of(family) if member.kind != CONSTANT}) < 2:
                return family
    try:
        for _ in cells(axes):
            pass
    except AbsentError as error:
        return error.family
    return None


def varies_over(found: Iterable[Cell]) -> dict[Term, list[Term]]:
    """For each factor that may move, the factors it may vary over, outermost first.

    When two factors are always present together, the one that was made first is the index of the other.
    """
    allowed: dict[Term, set[Term]] = {}
    for cell in found:
        single = _once([term for row in cell for term in row])
        for row in cell:
            near = single | _once(row)
            for term in row:
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


def _once(row: Sequence[Term]) -> set[Term]:
    """Return the factors that stand in a row exactly once; inside a pinned sum they stand at some places only."""
    once = set(row)
    if len(once) < len(row):
        once = {term for term in row if row.count(term) == 1}
    sums = [term for term in once if term.kind == SUM]
    return once.difference(*(_inside(term) for term in sums)) if sums else once
