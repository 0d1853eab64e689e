"""Terms: what the axes of tensors are made of. No torch here.

The algebra on them is in :mod:`autoperm.cutting` (slices and members) and :mod:`autoperm.axes` (unification).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod

FACTOR, PRODUCT, SUM, FAMILY, CONSTANT = range(5)
_ORDER = itertools.count()


@dataclass(frozen=True, slots=True)
class Pin:
    """Why a factor is pinned.

    Attributes:
        reason: in words.
        origin: the call that did it; None for what is not one call's doing.
        gap: whether it is for lack of a rule or of a notation, not by a law of the model.
    """

    reason: str
    origin: object = None
    gap: bool = False


_CALL: ContextVar[object] = ContextVar("call", default=None)


@contextmanager
def during(call: object) -> Generator[None]:
    """Let misfits that are found meanwhile name a call as where they come from."""
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def misfit() -> Pin:
    """Return why what cannot be unified is pinned."""
    return Pin("two ways of cutting the axis do not fit each other", _CALL.get(), gap=True)


APART = Pin("its units are taken one by one")


class Misfit(Exception):
    """Two structures cannot be made equal; whoever catches it pins both."""


class Term:
    """What stands for one axis, or for one factor of it. A node of the union-find.

    ``children`` are the factors of a product, the parts of a sum, or the members of a family; ``over`` is the axis of
    a family and ``parts`` that axis's parts, one a member. ``places`` are where the parts of a sum (of a family's axis)
    begin, and where the last one ends. ``mixed`` says that a constant is somewhere inside. ``rigid`` are the axes along
    which a factor is known not to vary.

    Sums and families are long where loops are unrolled, and nest as deep where a loop takes slices of slices. Read them
    by :func:`parts_of` and :func:`members_of`, which keep them flat, and never by recursion over ``children``.
    """

    __slots__ = ("children", "kind", "mixed", "order", "over", "parent", "parts", "pin", "places", "rigid", "size")

    def __init__(
        self,
        kind: int,
        size: int,
        children: Sequence[Term] = (),
        pin: Pin | None = None,
        over: Term | None = None,
        parts: Sequence[Term] = (),
    ) -> None:
        self.size = size
        self.pin = pin
        self.parent: Term | None = None
        self.rigid: set[Term] = set()
        self.order = next(_ORDER)
        self.become(kind, children, over, parts)
        self.mixed: bool = kind == CONSTANT or any(child.mixed for child in self.children)

    def become(self, kind: int, children: Sequence[Term], over: Term | None = None, parts: Sequence[Term] = ()) -> None:
        """Take a structure: what the term is made of, and for a family also its axis and that axis's parts."""
        self.kind = kind
        self.children = list(children)
        self.over = over
        self.parts = list(parts)
        along = self.parts if kind == FAMILY else self.children if kind == SUM else []
        self.places = list(itertools.accumulate([part.size for part in along], initial=0)) if along else []

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
    return Term(PRODUCT, prod(term.size for term in terms), terms)


def total(parts: Sequence[Term]) -> Term:
    """Make one axis of consecutive parts."""
    if len(parts) == 1:
        return find(parts[0])
    return Term(SUM, sum(part.size for part in parts), [leaf for part in parts for leaf in parts_of(part)])


def family(over: Term, parts: Sequence[Term], members: Sequence[Term]) -> Term:
    """Make the term that is one member for each part of an axis."""
    if len(members) == 1 or len({find(member) for member in members}) == 1:
        return find(members[0])
    if members[0].size == 1:
        return factor(1)
    return Term(FAMILY, members[0].size, members, None, over, parts)


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


def leaves_of(term: Term) -> list[Term]:
    """Return the factors and constants that a term is made of, those of all members of its families too, each once."""
    stack, seen = [find(term)], {find(term)}
    leaves = []
    while stack:
        term = stack.pop()
        if term.kind in (FACTOR, CONSTANT):
            leaves.append(term)
        for child in reversed(term.children):
            child = find(child)
            if child not in seen:  # families share members, so there are more ways to a term than terms
                seen.add(child)
                stack.append(child)
    return leaves


def parts_of(term: Term) -> Sequence[Term]:
    """Return the parts of a sum, or the term alone."""
    term = find(term)
    if term.kind != SUM:
        return [term]
    if any(part.parent is not None or part.kind == SUM for part in term.children):
        stack, flat = term.children[::-1], list[Term]()
        while stack:
            part = find(stack.pop())
            if part.kind == SUM:
                stack += reversed(part.children)
            else:
                flat.append(part)
        term.become(SUM, flat)
    return term.children


def is_nested(part: Term, member: Term) -> bool:
    """Tell whether a family's member at a part of its axis is a family over that part: then both are one family."""
    member = find(member)
    return member.kind == FAMILY and find(axis_of(member)) is find(part)


def members_of(term: Term) -> list[tuple[Term, Term]]:
    """Return the parts of a family's axis, each with the family's member there."""
    over, stack, flat = axis_of(term), [*zip(term.parts, term.children, strict=True)][::-1], list[tuple[Term, Term]]()
    while stack:
        part, member = map(find, stack.pop())
        if is_nested(part, member):
            stack += zip(reversed(member.parts), reversed(member.children), strict=True)
        else:
            flat.append((part, member))
    if len(flat) > len(term.parts):
        term.become(FAMILY, [member for _, member in flat], over, [part for part, _ in flat])
    return flat


def has_family(term: Term) -> bool:
    """Tell whether a term has a family somewhere inside."""
    term = find(term)
    if term.kind == PRODUCT:
        return any(map(has_family, term.children))
    return term.kind == FAMILY or (term.kind == SUM and any(map(has_family, parts_of(term))))


def pin(term: Term, why: Pin) -> None:
    """Pin a term and all that it is made of."""
    stack = [term]
    while stack:
        term = find(stack.pop())
        if term.pin is None and term.kind != CONSTANT:
            term.pin = why
            stack += term.children


def is_pinned(term: Term) -> bool:
    """Tell whether nothing in a term may move."""
    term = find(term)
    if term.pin is not None or term.size == 1:
        return True
    if term.kind == FAMILY:
        return all(is_pinned(member) for _, member in members_of(term))
    return term.kind in (PRODUCT, SUM) and all(map(is_pinned, parts_of(term) if term.kind == SUM else term.children))
