"""Cutting axes: slices, and the members that the rest of a tensor turns into. No torch here.

When an axis is cut to a range, every other factor of the tensor turns into its *member* for that range: a factor
becomes a family over the axis, a family gives the member that it has. Members follow structure: those of a product are
products of members, and a family of sums that is cut becomes a sum of families.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from .terms import (
    CONSTANT,
    EVERYWHERE,
    FACTOR,
    FAMILY,
    PRODUCT,
    SUM,
    Term,
    axis_of,
    constant,
    factor,
    factors,
    family,
    find,
    is_nested,
    members_of,
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
        term.become(SUM, [factor(size, term.pin) for size in map(int.__sub__, bounds[1:], bounds) if size])
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
        # The rows that are cut stand alone, those between them stay together: the product becomes a sum of both.
        cuts = {n for place in (start, stop) for n in (place // row, -(-place // row))}
        rows = itertools.pairwise(sorted({0, head.size, *cuts}))
        term.become(SUM, parts_of(total([cut(term, low * row, high * row)[0] for low, high in rows])))
        return _cut_sum(term, start, stop)
    first, handles = cut(head, index, index + 1)
    rest = product([restrict(other, handles) for other in tail])
    piece, inner = cut(rest, start - index * row, stop - index * row)
    return product([first, piece]), handles + inner


def _cut_sum(term: Term, start: int, stop: int) -> tuple[Term, list[Handle]]:
    index, offset = _locate(term, start)
    part = find(term.children[index])
    if part.kind == PRODUCT and stop <= offset + part.size and stop - start < part.size:
        piece, handles = cut(part, start - offset, stop - offset)
        return piece, [(term, offset, offset + part.size), *handles]
    low, high = _divide(term, start, stop)
    return total(term.children[low:high]), [(term, start, stop)]


def _locate(term: Term, place: int) -> tuple[int, int]:
    """Return in which part of a sum (of a family's axis) a place lies, and where that part begins."""
    index = bisect_right(term.places, place) - 1
    if term.kind == SUM and find(term.children[index]).kind == SUM:
        parts_of(term)
    elif term.kind == FAMILY and is_nested(term.parts[index], term.children[index]):
        members_of(term)
    index = bisect_right(term.places, place) - 1
    return index, term.places[index]


def _divide(term: Term, *places: int) -> list[int]:
    """Let parts of a sum (of a family's axis) begin at some places; return which ones do."""
    for place in places:
        if term.places[bisect_left(term.places, place)] == place:
            continue
        index, start = _locate(term, place)
        if start == place:
            continue
        part = find((term.parts or term.children)[index])
        halves = [cut(part, 0, place - start), cut(part, place - start, part.size)]
        pieces = [piece for piece, _ in halves]
        if term.kind == FAMILY:
            member = find(term.children[index])
            term.parts[index : index + 1] = pieces
            pieces = [restrict(member, handles) for _, handles in halves]
            for piece in pieces:
                if piece is not member:  # rigid along the family's axis already: a list of ranges would only grow
                    piece.rigid.discard(part)
        term.children[index : index + 1] = pieces
        term.places.insert(index + 1, place)
    return [bisect_left(term.places, place) for place in places]


def transpose(term: Term, kind: int, columns: Callable[[Term], Sequence[Term]]) -> None:
    """Turn a family of products (sums) into a product (sum) of families.

    Args:
        term: the family; it is bound to the new structure.
        kind: ``PRODUCT`` or ``SUM``.
        columns: takes a member apart into as many terms as every other.
    """
    rows = [columns(member) for _, member in members_of(term)]
    over, parts = axis_of(term), term.parts
    term.become(kind, [family(over, parts, column) for column in zip(*rows, strict=True)])


def cut_members(term: Term, sizes: Sequence[int]) -> None:
    """Turn a family into a sum of families, with parts of given sizes."""
    starts = [0, *itertools.accumulate(sizes)]
    transpose(term, SUM, lambda member: [cut(member, low, high)[0] for low, high in itertools.pairwise(starts)])


def restrict(term: Term, handles: Sequence[Handle]) -> Term:
    """Return what a term of a tensor becomes when another axis of that tensor is cut to a range."""
    for over, start, stop in handles:
        term = _restrict(find(term), find(over), start, stop, {})
    return term


def _restrict(term: Term, over: Term, start: int, stop: int, done: dict[Term, Term]) -> Term:
    """Restrict a term once: families share members, so there are more ways to a term than terms."""
    if term not in done:
        done[term] = _restrict_once(term, over, start, stop, done)
    return done[term]


def _restrict_once(term: Term, over: Term, start: int, stop: int, done: dict[Term, Term]) -> Term:
    if term.size == 1 or term is over or term.kind == CONSTANT or term.pin is not None:
        return term
    if start == 0 and stop == over.size:
        return term
    if term.kind == FAMILY:
        return _restrict_family(term, over, start, stop, done)
    if term.kind in (PRODUCT, SUM):
        children = parts_of(term) if term.kind == SUM else term.children
        found = [_restrict(find(child), over, start, stop, done) for child in children]
        if all(new is find(old) for new, old in zip(found, children, strict=True)):
            return term
        return product(found) if term.kind == PRODUCT else total(found)
    if EVERYWHERE in term.rigid or any(find(axis) is over for axis in term.rigid):
        return term
    bounds = (0, start, stop, over.size)
    ranges = [(low, high) for low, high in itertools.pairwise(bounds) if low < high]
    parts = [cut(over, low, high)[0] for low, high in ranges]
    term.become(FAMILY, [factor(term.size) for _ in ranges], over, parts)
    for child in term.children:
        child.rigid = {*term.rigid, over}  # a member is at its part already
    return term.children[ranges.index((start, stop))]


def _restrict_family(term: Term, over: Term, start: int, stop: int, done: dict[Term, Term]) -> Term:
    own = find(axis_of(term))
    if not _is_same_axis(own, over):
        leading = factors(own)[0] if own.kind == PRODUCT and factors(own) else None
        if leading is not over:
            pairs = members_of(term)
            members = [_restrict(member, over, start, stop, done) for _, member in pairs]
            if all(new is old for new, (_, old) in zip(members, pairs, strict=True)):
                return term
            return family(own, term.parts, members)
        row = own.size // over.size
        start, stop = start * row, stop * row
    index, offset = _locate(term, start)
    part = find(term.parts[index])
    if part.kind == PRODUCT and stop <= offset + part.size and stop - start < part.size:
        return restrict(term.children[index], cut(part, start - offset, stop - offset)[1])
    low, high = _divide(term, start, stop)
    parts = term.parts[low:high]
    return family(total(parts), parts, term.children[low:high])


def _is_same_axis(a: Term, b: Term) -> bool:
    """Tell whether two axes are one; sums of the same parts are, and so become one."""
    if a is not b and a.kind == b.kind == SUM and a.size == b.size and parts_of(a) == parts_of(b):
        a.parent = b
    return find(a) is find(b)
