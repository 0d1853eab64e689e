"""Terms: what the axes of tensors are made of. No torch here.

The algebra on them is in :mod:`autoperm.cutting` (slices and members) and :mod:`autoperm.axes` (unification).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

FACTOR, PRODUCT, SUM, FAMILY, CONSTANT = range(5)
_ORDER = itertools.count()


@dataclass(frozen=True, slots=True)
class Pin:
    """Why a factor is pinned: in words, and the call that did it (None: a law of the notation itself)."""

    reason: str
    origin: object = None


MISFIT = Pin("two ways of cutting the axis do not fit each other")


class Misfit(Exception):
    """Two structures cannot be made equal; whoever catches it pins both."""


class Term:
    """What stands for one axis, or for one factor of it. A node of the union-find.

    ``children`` are the factors of a product, the parts of a sum, or the members of a family; ``over`` is the axis of
    a family and ``parts`` that axis's parts, one a member. ``mixed`` says that a constant is somewhere inside.
    ``rigid`` are the axes along which a factor is known not to vary.
    """

    __slots__ = ("children", "kind", "mixed", "order", "over", "parent", "parts", "pin", "rigid", "size")

    def __init__(self, kind: int, size: int, children: list[Term] | None = None, pin: Pin | None = None) -> None:
        self.kind = kind
        self.size = size
        self.children: list[Term] = children or []
        self.pin = pin
        self.parent: Term | None = None
        self.over: Term | None = None
        self.parts: list[Term] = []
        self.rigid: set[Term] = set()
        self.order = next(_ORDER)
        self.mixed: bool = kind == CONSTANT or any(child.mixed for child in self.children)

    def __repr__(self) -> str:
        root = find(self)
        inside = ", ".join(map(repr, root.children))
        name = ("x", "product", "sum", "family", "constant")[root.kind]
        return f"{name}{root.order}[{root.size}]{'!' if root.pin else ''}" + (f"({inside})" if inside else "")


EVERYWHERE = Term(FACTOR, 1)
"""Among the axes along which a factor is rigid: along any."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """An axis of slots: the units of ``of``, sorted by the unit of ``by`` to which each belongs.

    Slots of one unit of ``by`` are in the order of ``of``. ``bag`` stands for what was sorted.
    """

    axis: Term
    by: Term
    of: Term
    bag: object


def find(term: Term) -> Term:
    """Return the representative of a term."""
    root = term
    while root.parent is not None:
        root = root.parent
    while term.parent is not None:
        term.parent, term = root, term.parent
    return root


def factor(size: int, pin: Pin | None = None) -> Term:
    """Make a new factor, pinned if a reason is given."""
    return Term(FACTOR, size, pin=pin)


def constant(size: int) -> Term:
    """Make an axis along which the values are all the same."""
    return Term(CONSTANT, size)


def product(terms: Sequence[Term]) -> Term:
    """Make one axis of several, row-major."""
    if len(terms) == 1:
        return find(terms[0])
    return Term(PRODUCT, prod(term.size for term in terms), list(terms))


def total(parts: Sequence[Term]) -> Term:
    """Make one axis of consecutive parts."""
    if len(parts) == 1:
        return find(parts[0])
    flat = [leaf for part in parts for leaf in parts_of(part)]
    return Term(SUM, sum(part.size for part in parts), flat)


def family(over: Term, parts: Sequence[Term], members: Sequence[Term]) -> Term:
    """Make the term that is one member for each part of an axis."""
    if len(members) == 1 or len({find(member) for member in members}) == 1:
        return find(members[0])
    if members[0].size == 1:
        return factor(1)
    term = Term(FAMILY, members[0].size, list(members))
    term.over = over
    term.parts = list(parts)
    return term


def axis_of(term: Term) -> Term:
    """Return the axis of a family."""
    if term.over is None:
        raise TypeError("not a family")
    return term.over


def factors(term: Term) -> list[Term]:
    """Return the factors of a term, left to right, without those of length 1."""
    term = find(term)
    if term.size == 1:
        return []
    if term.kind == PRODUCT:
        return [inner for child in term.children for inner in factors(child)]
    return [term]


def parts_of(term: Term) -> list[Term]:
    """Return the parts of a sum, or the term alone."""
    term = find(term)
    if term.kind != SUM:
        return [term]
    return [part for child in term.children for part in parts_of(child)]


def has_family(term: Term) -> bool:
    """Tell whether a term has a family somewhere inside."""
    term = find(term)
    return term.kind == FAMILY or (term.kind in (PRODUCT, SUM) and any(map(has_family, term.children)))


def pin(term: Term, why: Pin) -> None:
    """Pin a term and all that it is made of."""
    term = find(term)
    if term.pin is None and term.kind != CONSTANT:
        term.pin = why
        for child in term.children:
            pin(child, why)


def is_pinned(term: Term) -> bool:
    """Tell whether nothing in a term may move."""
    term = find(term)
    if term.pin is not None or term.size == 1:
        return True
    return term.kind in (PRODUCT, SUM, FAMILY) and all(map(is_pinned, term.children))
