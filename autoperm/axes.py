"""The algebra of axes: factors, products, sums, families, constants, and their unification. No torch here.

Every axis of every tensor in a model's graph carries a :class:`Term`.

* A **factor** is a set of interchangeable units. It may be permuted in any way unless it is **pinned**.
* A **product** is one axis made of several terms, row-major: the channels ``(h d)`` of attention heads.
* A **sum** is one axis made of consecutive parts: ``(q + k + v)``.
* A **family** over an axis ``X`` is one term for each part of ``X``. Queries, keys and values that come out of one
  layer as ``(3 h d)`` share no permutation until something says so: when the axis of length 3 is cut, ``d`` becomes
  the family of three *members*, one for each part.
* A **constant** axis (of ``zeros``, of ``expand``) is the same all along: it goes with any term and restricts none.

An operation says which axes are equal, and equality is solved by **unification**, as in type inference. Terms are
variables: a factor that is found to have structure is *bound* to it, everywhere at once, so each operation is looked
at once. (A design that instead repeats all rules until nothing changes needs several passes; here the union-find
carries what is learnt later back to what was seen earlier.) What cannot be unified is pinned, which is always sound.

Families are optimistic: they assume that a factor may be permuted differently for each part. The law of presence in
:mod:`autoperm.presence` takes that back wherever it does not hold, by *collapsing* the family to one term.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

FACTOR, PRODUCT, SUM, FAMILY, CONSTANT = range(5)
_ORDER = itertools.count()
_DEPTH_LIMIT = 100


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


Handle = tuple[Term, int, int]
"""An axis and the range of it to which a slice restricts the rest of the tensor."""


def find(term: Term) -> Term:
    """Return the representative of a term."""
    root = term
    while root.parent is not None:
        root = root.parent
    while term.parent is not None:
        term.parent, term = root, term.parent
    return root


# --- making terms


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
    term = Term(FAMILY, members[0].size, list(members))
    term.over = over
    term.parts = list(parts)
    return term


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


# --- pins, rigidity


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


def make_rigid(term: Term, axes: Iterable[Term]) -> None:
    """Forbid a term to vary along axes."""
    term = find(term)
    axes = set(axes)
    if term.kind == FACTOR:
        term.rigid |= axes
        return
    if term.kind == FAMILY and find(_over(term)) in {find(axis) for axis in axes}:
        collapse(term)
        return
    for child in list(term.children):
        make_rigid(child, axes)


def collapse(term: Term) -> None:
    """Make all members of a family one."""
    term = find(term)
    if term.kind != FAMILY:
        return
    over = [_over(term), *term.parts]
    members = [member for member in map(find, term.children) if member is not term]
    first = members[0] if members else factor(term.size)
    for member in members[1:]:
        first = meet(first, member)
    first = find(first)
    if first is not term:
        term.parent = first
        if term.pin is not None:
            pin(first, term.pin)
    make_rigid(first, over)


def _over(term: Term) -> Term:
    if term.over is None:
        raise TypeError("not a family")
    return term.over


# --- unification


def unify(a: Term, b: Term) -> None:
    """Make two terms of equal size one; pin both where their structures do not fit."""
    _unify(a, b, 0)


def _unify(a: Term, b: Term, depth: int) -> None:
    a, b = _core(a), _core(b)
    if a is b or a.size == 1 or a.kind == CONSTANT or b.kind == CONSTANT:
        return
    if a.size != b.size:
        raise Misfit(f"sizes {a.size} and {b.size}")
    if a.kind > b.kind:
        a, b = b, a
    try:
        if depth > _DEPTH_LIMIT:
            raise Misfit("structures too deep")
        _SOLVE[a.kind, b.kind](a, b, depth + 1)
    except Misfit:
        pin(a, MISFIT)
        pin(b, MISFIT)


def _core(term: Term) -> Term:
    """Return what a product stands for that has one child beside those of length 1; else the term itself."""
    term = find(term)
    while term.kind == PRODUCT:
        inner = [child for child in term.children if child.size > 1]
        if len(inner) != 1:
            break
        term = find(inner[0])
    return term


def _unify_part(a: Term, b: Term, depth: int) -> None:
    """Unify parts at the same place of equal sums: here even parts of length 1 are the same part."""
    a, b = find(a), find(b)
    if a.size == 1 and a is not b:
        if b.kind == FACTOR:
            b.parent = a
        elif a.kind == FACTOR:
            a.parent = b
    else:
        _unify(a, b, depth)


def _bind(a: Term, b: Term, depth: int) -> None:
    """A factor takes the structure of another term."""
    if b.kind != FACTOR and _occurs(a, b):
        if b.kind != FAMILY:
            raise Misfit("a term inside itself")
        collapse(b)
        _unify(a, b, depth)
        return
    a.parent = b
    if a.pin is not None:
        pin(b, a.pin)
    if a.rigid:
        make_rigid(b, a.rigid)


def _occurs(a: Term, b: Term) -> bool:
    return any(find(child) is a or _occurs(a, find(child)) for child in b.children if child.size >= a.size)


def _product_product(a: Term, b: Term, depth: int) -> None:
    left, right = factors(a), factors(b)
    while left and right:
        f, g = left.pop(0), right.pop(0)
        if f.size > g.size:
            f, rest = split(f, g.size)
            left[:0] = factors(rest)
        elif g.size > f.size:
            g, rest = split(g, f.size)
            right[:0] = factors(rest)
        _unify(f, g, depth)
    _merge(a, b)


def _merge(a: Term, b: Term) -> None:
    """Let two terms that have been made equal be one."""
    a, b = find(a), find(b)
    if a is not b:
        b.parent = a


def _product_sum(a: Term, b: Term, depth: int) -> None:
    start = 0
    for part in parts_of(b):
        piece, _ = cut(a, start, start + part.size)
        _unify_part(part, piece, depth)
        start += part.size
    _merge(a, b)


def _sum_sum(a: Term, b: Term, depth: int) -> None:
    left, right = parts_of(a), parts_of(b)
    while left and right:
        f, g = find(left.pop(0)), find(right.pop(0))
        if f.size > g.size:
            f, rest = _halves(f, g.size)
            left.insert(0, rest)
        elif g.size > f.size:
            g, rest = _halves(g, f.size)
            right.insert(0, rest)
        _unify_part(f, g, depth)
    _merge(a, b)


def _halves(term: Term, at: int) -> tuple[Term, Term]:
    return cut(term, 0, at)[0], cut(term, at, term.size)[0]


def _product_family(a: Term, b: Term, depth: int) -> None:
    _transpose(b, PRODUCT, [f.size for f in factors(a)])
    _unify(a, b, depth)


def _sum_family(a: Term, b: Term, depth: int) -> None:
    _transpose(b, SUM, [part.size for part in parts_of(a)])
    _unify(a, b, depth)


def _family_family(a: Term, b: Term, depth: int) -> None:
    start = 0
    over = _over(a)
    for part, member in list(zip(a.parts, a.children, strict=True)):
        _unify(member, restrict(b, [(over, start, start + part.size)]), depth)
        start += part.size
    a, b = find(a), find(b)
    if a is not b:
        pinned, rigid = b.pin, b.rigid
        b.parent = a
        if pinned is not None:
            pin(a, pinned)
        make_rigid(a, rigid)


def _transpose(term: Term, kind: int, sizes: Sequence[int]) -> None:
    """Turn a family of products (sums) into a product (sum) of families."""
    columns: list[list[Term]] = [[] for _ in sizes]
    for member in term.children:
        start = 0
        rest = member
        for column, size in zip(columns, sizes, strict=True):
            if kind == SUM:
                column.append(cut(member, start, start + size)[0])
                start += size
            else:
                piece, rest = split(rest, size)
                column.append(piece)
    over, parts = _over(term), term.parts
    term.children = [family(over, parts, column) for column in columns]
    term.kind, term.over, term.parts = kind, None, []


def _factor_any(a: Term, b: Term, depth: int) -> None:
    _bind(a, b, depth)


_SOLVE = {
    (FACTOR, FACTOR): _factor_any,
    (FACTOR, PRODUCT): _factor_any,
    (FACTOR, SUM): _factor_any,
    (FACTOR, FAMILY): _factor_any,
    (PRODUCT, PRODUCT): _product_product,
    (PRODUCT, SUM): _product_sum,
    (PRODUCT, FAMILY): _product_family,
    (SUM, SUM): _sum_sum,
    (SUM, FAMILY): _sum_family,
    (FAMILY, FAMILY): _family_family,
}


def meet(a: Term, b: Term) -> Term:
    """Make two terms equal where both say something; a constant takes the other's word.

    Returns:
        The term that says most, for the result of an operation on both.
    """
    a, b = find(a), find(b)
    if a is b or b.kind == CONSTANT:
        return a
    if a.kind == CONSTANT:
        return b
    if not (a.mixed or b.mixed):
        unify(a, b)
        return find(a)
    try:
        return _meet_mixed(a, b)
    except Misfit:
        pin(a, MISFIT)
        pin(b, MISFIT)
        return factor(a.size, MISFIT)


def _meet_mixed(a: Term, b: Term) -> Term:
    if a.kind == FAMILY or b.kind == FAMILY:
        if a.kind != FAMILY:
            a, b = b, a
        over, start, members = _over(a), 0, []
        for part, member in zip(a.parts, a.children, strict=True):
            members.append(meet(member, restrict(b, [(over, start, start + part.size)])))
            start += part.size
        return family(over, a.parts, members)
    if a.kind == SUM or b.kind == SUM:
        if a.kind != SUM:
            a, b = b, a
        start, pieces = 0, []
        for part in parts_of(a):
            pieces.append(meet(part, cut(b, start, start + part.size)[0]))
            start += part.size
        return total(pieces)
    left, right, found = factors(a), factors(b), []
    while left and right:
        f, g = left.pop(0), right.pop(0)
        if f.size > g.size:
            f, rest = split(f, g.size)
            left[:0] = factors(rest)
        elif g.size > f.size:
            g, rest = split(g, f.size)
            right[:0] = factors(rest)
        found.append(meet(f, g))
    return product(found)


# --- cutting


def split(term: Term, size: int) -> tuple[Term, Term]:
    """Split a term into a leading factor of a size and the rest.

    Raises:
        Misfit: if the sizes do not divide.
    """
    term = find(term)
    if size == 1:
        return factor(1), term
    if size == term.size:
        return term, factor(1)
    if term.size % size:
        raise Misfit(f"{size} does not divide {term.size}")
    if term.kind == CONSTANT:
        return constant(size), constant(term.size // size)
    if term.kind == PRODUCT:
        left: list[Term] = []
        right = factors(term)
        done = 1
        while done < size:
            head = right.pop(0)
            if (size // done) % head.size:
                head, rest = split(head, size // done) if head.size % (size // done) == 0 else _misfit()
                right.insert(0, rest)
            left.append(head)
            done *= head.size
        return product(left), product(right)
    if term.kind == FAMILY:
        _transpose(term, PRODUCT, [size, term.size // size])
        return term.children[0], term.children[1]
    if term.kind == SUM:
        if term.mixed:
            raise Misfit("a sum with a constant part cannot be split")
        halves = [factor(size), factor(term.size // size)]
        unify(term, product(halves))
        return halves[0], halves[1]
    term.children = [factor(size, term.pin), factor(term.size // size, term.pin)]
    term.kind = PRODUCT
    make_rigid(term, term.rigid)
    return term.children[0], term.children[1]


def _misfit() -> tuple[Term, Term]:
    raise Misfit("sizes do not divide")


def regroup(terms: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    """Read the row-major product of axes as axes of other sizes: the heart of ``view``.

    Raises:
        Misfit: if the sizes do not divide.
    """
    flat = [f for term in terms for f in factors(term)]
    found = []
    for size in sizes:
        group: list[Term] = []
        done = 1
        while done < size:
            if not flat:
                raise Misfit("sizes do not multiply to the same number")
            head = flat.pop(0)
            if (size // done) % head.size:
                head, rest = split(head, size // done)
                flat[:0] = factors(rest)
            group.append(head)
            done *= head.size
        if done != size:
            raise Misfit("sizes do not divide")
        found.append(product(group) if group else factor(1))
    return found


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
        _transpose(term, SUM, [size for size in map(int.__sub__, bounds[1:], bounds) if size])
    elif term.kind == FACTOR:
        term.children = [factor(size, term.pin) for size in map(int.__sub__, bounds[1:], bounds) if size]
        term.kind = SUM
        make_rigid(term, term.rigid)
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
    if any(find(axis) is over for axis in term.rigid):
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
    own = find(_over(term))
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
