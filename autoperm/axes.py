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

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from .cutting import cut, cut_members, restrict, transpose
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
    members_of,
    misfit,
    parts_of,
    pin,
    product,
    total,
)

_DEPTH_LIMIT = 100


def make_rigid(term: Term, axes: Iterable[Term]) -> None:
    """Forbid a term to vary along axes."""
    axes = set(axes)
    roots = {find(axis) for axis in axes}
    stack, seen = [term], set[Term]()
    while stack:
        term = find(stack.pop())
        if term in seen:  # families share members, so there are more ways to a term than terms
            continue
        seen.add(term)
        if term.kind == FACTOR:
            term.rigid |= axes
        elif term.kind == FAMILY and (EVERYWHERE in axes or find(axis_of(term)) in roots):
            collapse(term)
        else:
            stack += reversed(_inside(term))


def _inside(term: Term) -> list[Term]:
    """Return what a term is made of, sums and families flat."""
    if term.kind == SUM:
        return list(parts_of(term))
    return [member for _, member in members_of(term)] if term.kind == FAMILY else list(term.children)


def collapse(term: Term) -> None:
    """Make all members of a family one."""
    term = find(term)
    if term.kind != FAMILY:
        return
    pairs = members_of(term)
    over = [axis_of(term), *(part for part, _ in pairs if part.size > 1)]  # along one unit nothing can vary
    members = [member for _, member in pairs if member is not term]
    first = members[0] if members else factor(term.size)
    for member in members[1:]:
        first = meet(first, member)
    first = find(first)
    if find(term) is not term:  # equating the members has equated the family with something already
        unify(term, first)
    elif first is not term:
        _become_one(term, first)
    if term.pin is not None:
        pin(first, term.pin)
    make_rigid(first, over)


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
    for inner, outer in ((a, b), (b, a)):
        if outer.kind == FAMILY and _occurs(inner, outer):  # a member is equal to the whole
            collapse(outer)
            _unify(inner, outer, depth + 1)
            return
    try:
        if depth > _DEPTH_LIMIT:
            raise Misfit("structures too deep")
        _SOLVE[a.kind, b.kind](a, b, depth + 1)
    except Misfit:
        why = misfit()
        pin(a, why)
        pin(b, why)


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
        if b.kind == FACTOR and not _occurs(b, a):
            b.parent = a
        elif a.kind == FACTOR and not _occurs(a, b):
            a.parent = b
    else:
        _unify(a, b, depth)


def _bind(a: Term, b: Term, depth: int) -> None:
    """A factor takes the structure of another term."""
    if _occurs(a, b):
        raise Misfit("a term inside itself")
    a.parent = b
    if a.pin is not None:
        pin(b, a.pin)
    if len(a.rigid) > len(b.rigid) and b.kind == FACTOR:
        a.rigid, b.rigid = b.rigid, a.rigid
    if a.rigid:
        make_rigid(b, a.rigid)


def _occurs(a: Term, b: Term) -> bool:
    """Tell whether a term is somewhere inside another."""
    stack, seen = [b], {b}
    while stack:
        for child in map(find, stack.pop().children):
            if child is a:
                return True
            if child.children and child.size >= a.size and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


def _product_product(a: Term, b: Term, depth: int) -> None:
    for f, g in _pairs(a, b):
        _unify(f, g, depth)
    _merge(a, b)


def _pairs(a: Term, b: Term) -> Iterator[tuple[Term, Term]]:
    """Walk two products from the left, splitting the larger factor, and yield pairs of equal size."""
    left, right = factors(a), factors(b)
    while left and right:
        f, g = left.pop(0), right.pop(0)
        if f.size > g.size:
            f, rest = split(f, g.size)
            left[:0] = factors(rest)
        elif g.size > f.size:
            g, rest = split(g, f.size)
            right[:0] = factors(rest)
        yield f, g


def _merge(a: Term, b: Term) -> None:
    """Let two terms that have been made equal be one."""
    a, b = find(a), find(b)
    if a is not b:
        _become_one(b, a)


def _become_one(term: Term, other: Term) -> None:
    """Let a term be another; one that stands inside the other is pinned, and so is the other."""
    if _occurs(term, other):
        pin(other, misfit())
        term.become(FACTOR, ())
    else:
        term.parent = other


def _product_sum(a: Term, b: Term, depth: int) -> None:
    start = 0
    for part in list(parts_of(b)):
        piece, _ = cut(a, start, start + part.size)
        _unify_part(part, piece, depth)
        start += part.size
    _merge(a, b)


def _sum_sum(a: Term, b: Term, depth: int) -> None:
    left, right = deque(parts_of(a)), deque(parts_of(b))
    while left and right:
        f, g = find(left.popleft()), find(right.popleft())
        if f.size > g.size:
            f, rest = _halves(f, g.size)
            left.appendleft(rest)
        elif g.size > f.size:
            g, rest = _halves(g, f.size)
            right.appendleft(rest)
        _unify_part(f, g, depth)
    _merge(a, b)


def _halves(term: Term, at: int) -> tuple[Term, Term]:
    return cut(term, 0, at)[0], cut(term, at, term.size)[0]


def _product_family(a: Term, b: Term, depth: int) -> None:
    sizes = [f.size for f in factors(a)]
    transpose(b, PRODUCT, lambda member: regroup([member], sizes))
    _unify(a, b, depth)


def _sum_family(a: Term, b: Term, depth: int) -> None:
    cut_members(b, [part.size for part in parts_of(a)])
    _unify(a, b, depth)


def _family_family(a: Term, b: Term, depth: int) -> None:
    start = 0
    over = axis_of(a)
    for part, member in members_of(a):
        _unify(member, restrict(b, [(over, start, start + part.size)]), depth)
        start += part.size
    a, b = find(a), find(b)
    if _occurs(a, b) or _occurs(b, a):  # equating the members has put one inside the other
        _unify(a, b, depth)
    elif a is not b:
        pinned, rigid = b.pin, b.rigid
        _become_one(b, a)
        if pinned is not None:
            pin(a, pinned)
        make_rigid(a, rigid)


_SOLVE = {
    (FACTOR, FACTOR): _bind,
    (FACTOR, PRODUCT): _bind,
    (FACTOR, SUM): _bind,
    (FACTOR, FAMILY): _bind,
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
        why = misfit()
        pin(a, why)
        pin(b, why)
        return factor(a.size, why)


def _meet_mixed(a: Term, b: Term) -> Term:
    if a.kind == FAMILY or b.kind == FAMILY:
        if a.kind != FAMILY:
            a, b = b, a
        over, start, members = axis_of(a), 0, []
        pairs = members_of(a)
        for part, member in pairs:
            members.append(meet(member, restrict(b, [(over, start, start + part.size)])))
            start += part.size
        return family(over, [part for part, _ in pairs], members)
    if a.kind == SUM or b.kind == SUM:
        if a.kind != SUM:
            a, b = b, a
        start, pieces = 0, []
        for part in list(parts_of(a)):
            pieces.append(meet(part, cut(b, start, start + part.size)[0]))
            start += part.size
        return total(pieces)
    return product([meet(f, g) for f, g in _pairs(a, b)])


# --- reading axes in another way


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
                head, rest = split(head, size // done)
                right[:0] = factors(rest)
            left.append(head)
            done *= head.size
        return product(left), product(right)
    if term.kind == FAMILY:
        transpose(term, PRODUCT, lambda member: split(member, size))
        return term.children[0], term.children[1]
    if term.kind == SUM:
        if term.mixed:
            raise Misfit("a sum with a constant part cannot be split")
        halves = [factor(size), factor(term.size // size)]
        unify(term, product(halves))
        return halves[0], halves[1]
    term.become(PRODUCT, [factor(size, term.pin), factor(term.size // size, term.pin)])
    make_rigid(term, term.rigid)
    return term.children[0], term.children[1]


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
