"""Cutting axes: slices, and the members that the rest of a tensor turns into. No torch here.

When an axis is cut to a range, every other factor of the tensor turns into its *member* for that range: a factor
becomes a family over the axis, a family gives the member that it has. Members follow structure: those of a product are
products of members, and a family of sums that is cut becomes a sum of families.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from .terms import (
    CONSTANT,
    EVERYWHERE,
    FACTOR,
    FAMILY,
    PRODUCT,
    SUM,
    Misfit,
    Term,
    axis_of,
    constant,
    factor,
    factors,
    family,
    find,
    parts_of,
    product,
    total,
)

Handle = tuple[Term, int, int]
"""An axis and the range of it to which a slice restricts the rest of the tensor."""


def cut(term: Term, start: int, stop: int) -> tuple[Term, list[Handle]]:
    """Cut ``[start, stop)`` out of an axis.

    Returns:
        The piece, and the handles by which the other factors of the same tensor turn into their members.

    Raises:
        Misfit: if the range cuts through a product in no expressible way.
    """
    term = find(term)
    if start == 0 and stop == term.size:
        return term, []
    if start == stop:
        return factor(0), []
    if term.kind == CONSTANT:
        return constant(stop - start), []
    if term.kind == PRODUCT:
        return _cut_product(term, start, stop)
    bounds = (0, start, stop, term.size)
    if term.kind == FAMILY:
        cut_members(term, [size for size in map(int.__sub__, bounds[1:], bounds) if size])
    elif term.kind == FACTOR:
        term.children = [factor(size, term.pin) for size in map(int.__sub__, bounds[1:], bounds) if size]
        term.kind = SUM
        for child in term.children:
            child.rigid = set(term.rigid)
    return _cut_sum(term, start, stop)


def _cut_product(term: Term, start: int, stop: int) -> tuple[Term, list[Handle]]:
    head, *tail = factors(term)
    if not tail:
        return cut(head, start, stop)
    row = term.size // head.size
    if start % row == 0 and stop % row == 0:
        piece, handles = cut(head, start // row, stop // row)
        return product([piece, *(restrict(other, handles) for other in tail)]), handles
    index = start // row
    if index != (stop - 1) // row:
        raise Misfit("a slice across rows of a product")
    first, handles = cut(head, index, index + 1)
    rest = product([restrict(other, handles) for other in tail])
    piece, inner = cut(rest, start - index * row, stop - index * row)
    return product([first, piece]), handles + inner


def _cut_sum(term: Term, start: int, stop: int) -> tuple[Term, list[Handle]]:
    children = parts_of(term)
    pieces: list[Term] = []
    found: list[Term] = []
    offset = 0
    for child in children:
        low, high = max(start, offset) - offset, min(stop, offset + child.size) - offset
        if low >= high or (low == 0 and high == child.size):
            pieces.append(child)
            if low < high:
                found.append(child)
        elif find(child).kind == PRODUCT and offset <= start and stop <= offset + child.size:
            piece, inner = cut(child, low, high)
            return piece, [(term, offset, offset + child.size), *inner]
        else:
            for lower, upper in ((0, low), (low, high), (high, child.size)):
                if lower < upper:
                    pieces.append(cut(child, lower, upper)[0])
                    if lower == low:
                        found.append(pieces[-1])
        offset += child.size
    term.children = pieces
    return total(found), [(term, start, stop)]


def transpose(term: Term, kind: int, columns: Callable[[Term], Sequence[Term]]) -> None:
    """Turn a family of products (sums) into a product (sum) of families.

    Args:
        term: the family; it is bound to the new structure.
        kind: ``PRODUCT`` or ``SUM``.
        columns: takes a member apart into as many terms as every other.
    """
    rows = [columns(member) for member in term.children]
    over, parts = axis_of(term), term.parts
    term.children = [family(over, parts, column) for column in zip(*rows, strict=True)]
    term.kind, term.over, term.parts = kind, None, []


def cut_members(term: Term, sizes: Sequence[int]) -> None:
    """Turn a family into a sum of families, with parts of given sizes."""
    starts = [0, *itertools.accumulate(sizes)]
    transpose(term, SUM, lambda member: [cut(member, low, high)[0] for low, high in itertools.pairwise(starts)])


def restrict(term: Term, handles: Sequence[Handle]) -> Term:
    """Return what a term of a tensor becomes when another axis of that tensor is cut to a range."""
    for over, start, stop in handles:
        term = _restrict(find(term), find(over), start, stop)
    return term


def _restrict(term: Term, over: Term, start: int, stop: int) -> Term:
    if term.size == 1 or term is over or term.kind == CONSTANT or term.pin is not None:
        return term
    if start == 0 and stop == over.size:
        return term
    if term.kind == FAMILY:
        return _restrict_family(term, over, start, stop)
    if term.kind in (PRODUCT, SUM):
        children = [_restrict(find(child), over, start, stop) for child in term.children]
        if all(new is find(old) for new, old in zip(children, term.children, strict=True)):
            return term
        return product(children) if term.kind == PRODUCT else total(children)
    if EVERYWHERE in term.rigid or any(find(axis) is over for axis in term.rigid):
        return term
    bounds = (0, start, stop, over.size)
    ranges = [(low, high) for low, high in itertools.pairwise(bounds) if low < high]
    term.parts = [cut(over, low, high)[0] for low, high in ranges]
    term.children = [factor(term.size) for _ in ranges]
    term.kind, term.over = FAMILY, over
    for child in term.children:
        child.rigid = {*term.rigid, over}  # a member is at its part already
    return term.children[ranges.index((start, stop))]


def _restrict_family(term: Term, over: Term, start: int, stop: int) -> Term:
    own = find(axis_of(term))
    if own is not over:
        leading = factors(own)[0] if own.kind == PRODUCT and factors(own) else None
        if leading is not over:
            members = [_restrict(find(member), over, start, stop) for member in term.children]
            return family(own, term.parts, members)
        row = own.size // over.size
        start, stop = start * row, stop * row
    parts: list[Term] = []
    members = []
    offset = 0
    for part, member in zip(term.parts, term.children, strict=True):
        low, high = max(start, offset) - offset, min(stop, offset + part.size) - offset
        if low < high:
            piece, handles = cut(part, low, high)
            parts.append(piece)
            members.append(restrict(member, handles))
        offset += part.size
    return family(total(parts), parts, members)
