"""The algebra of axes, without any model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoperm.axes import collapse, make_rigid, meet, regroup, split, unify
from autoperm.cutting import cut, restrict
from autoperm.joining import broadcast, concatenate
from autoperm.terms import (
    CONSTANT,
    FACTOR,
    FAMILY,
    PRODUCT,
    SUM,
    Misfit,
    Pin,
    Term,
    constant,
    factor,
    factors,
    family,
    find,
    is_pinned,
    members_of,
    parts_of,
    pin,
    product,
    total,
)

WHY = Pin("for this test")


def sizes(terms: Sequence[Term]) -> list[int]:
    return [term.size for term in terms]


def same(a: Term, b: Term) -> bool:
    return find(a) is find(b)


# --- factors, products


def test_equal_factors_are_one_and_pinned_if_either_is() -> None:
    a, b, c = factor(4), factor(4), factor(4)
    unify(a, b)
    pin(c, WHY)
    unify(b, c)
    assert same(a, c)
    assert find(a).pin is WHY


def test_a_factor_takes_the_structure_of_what_it_equals() -> None:
    for structure in (product([factor(2), factor(3)]), total([factor(2), factor(4)])):
        a = factor(6)
        unify(a, structure)
        assert same(a, structure)


def test_products_are_split_where_sizes_divide() -> None:
    a, b = product([factor(32), factor(4)]), product([factor(8), factor(16)])
    unify(a, b)
    assert sizes(factors(a)) == sizes(factors(b)) == [8, 4, 4]
    assert all(map(same, factors(a), factors(b)))
    assert not is_pinned(a)


def test_products_of_sizes_that_do_not_divide_are_pinned() -> None:
    a, b = product([factor(4), factor(3)]), product([factor(6), factor(2)])
    unify(a, b)
    assert is_pinned(a)
    assert is_pinned(b)


def test_pinning_pins_all_that_is_inside() -> None:
    inner = [factor(2), factor(3), factor(5)]
    pin(total([product(inner[:2]), inner[2]]), WHY)
    assert all(term.pin is WHY for term in inner)
    assert is_pinned(product([factor(1), inner[0]]))
    assert not is_pinned(product([inner[0], factor(4)]))
    assert not is_pinned(constant(3))


def test_pins_reach_through_products_found_later() -> None:
    a, h, d = factor(6), factor(2), factor(3)
    pin(a, WHY)
    unify(product([h, d]), a)
    assert is_pinned(h)
    assert is_pinned(d)


def test_axes_of_length_one_do_not_matter() -> None:
    x = factor(6)
    around = product([factor(1), x, factor(1)])
    unify(x, around)
    assert not is_pinned(x)
    assert factors(around) == [find(x)]
    unify(product([factor(1), factor(6)]), product([factor(2), factor(3)]))


@pytest.mark.parametrize(
    ("before", "after", "flat"),
    [
        ([12], [3, 4], [3, 4]),
        ([3, 4], [12], [3, 4]),
        ([6, 4], [2, 12], [2, 3, 4]),
        ([2, 1, 6], [4, 3], [2, 2, 3]),
        ([8, 3], [2, 4, 1, 3], [2, 4, 3]),
    ],
)
def test_regroup(before: list[int], after: list[int], flat: list[int]) -> None:
    terms = [factor(n) for n in before]
    found = regroup(terms, after)
    assert sizes(found) == after
    assert [f.size for term in found for f in factors(term)] == flat
    assert [f for term in found for f in factors(term)] == [f for term in terms for f in factors(term)]


def test_regroup_and_split_refuse_what_does_not_divide() -> None:
    with pytest.raises(Misfit):
        regroup([factor(4), factor(3)], [6, 2])
    with pytest.raises(Misfit):
        regroup([factor(4)], [8])
    with pytest.raises(Misfit):
        split(factor(6), 4)


# --- sums


def test_sums_are_refined_to_all_cuts() -> None:
    a, b = total([factor(3), factor(5)]), total([factor(4), factor(4)])
    unify(a, b)
    assert sizes(parts_of(a)) == sizes(parts_of(b)) == [3, 1, 4]
    assert all(map(same, parts_of(a), parts_of(b)))


def test_a_sum_equals_a_product_where_rows_are_not_cut() -> None:
    rows, row = factor(5), factor(4)
    parts = [factor(8), factor(12)]
    unify(total(parts), product([rows, row]))
    assert sizes(parts_of(rows)) == [2, 3]
    for part, leading in zip(parts, parts_of(rows), strict=True):
        assert sizes(factors(part)) == [leading.size, 4]
        assert same(factors(part)[0], leading)


def test_a_sum_that_cuts_through_rows_makes_the_product_a_sum() -> None:
    """(3 + 5) = (2 4): the first row is cut into 3 + 1, the second stays whole, and the two may not change places."""
    sum_, head, row = total([factor(3), factor(5)]), factor(2), factor(4)
    rows = product([head, row])
    unify(sum_, rows)
    assert same(sum_, rows)
    assert sizes(parts_of(sum_)) == [3, 1, 4]
    assert sizes(parts_of(head)) == [1, 1]
    first, second = (restrict(row, [(head, i, i + 1)]) for i in range(2))
    assert sizes(parts_of(first)) == [3, 1]
    assert factors(parts_of(sum_)[2]) == [find(second)]
    assert not any(map(is_pinned, (parts_of(first)[0], second)))


def test_rows_around_the_one_that_is_cut_stay_together() -> None:
    head, row = factor(7), factor(4)
    piece, handles = cut(product([head, row]), 9, 16)
    assert sizes(parts_of(piece)) == [3, 4]
    assert sizes(parts_of(head)) == [2, 1, 1, 3]
    other = factor(5)
    assert not same(restrict(other, handles), other)


def test_equal_parts_of_a_sum_that_is_a_product_are_members() -> None:
    """(q + k + v) = (3 n): each part is n, differently for each."""
    q, k, v = factor(4), factor(4), factor(4)
    unify(total([q, k, v]), product([factor(3), factor(4)]))
    assert not same(q, k)
    assert not any(map(is_pinned, (q, k, v)))


def test_cut_and_total_are_inverse() -> None:
    x = factor(10)
    pieces = [cut(x, a, b)[0] for a, b in itertools.pairwise([0, 2, 5, 10])]
    assert sizes(parts_of(x)) == [2, 3, 5]
    assert all(map(same, pieces, parts_of(x)))
    unify(total(pieces), x)
    assert not is_pinned(x)
    whole, handles = cut(x, 0, 10)
    assert same(whole, x)
    assert handles == []


def test_pieces_of_a_pinned_axis_are_pinned() -> None:
    x = factor(6)
    pin(x, WHY)
    assert is_pinned(cut(x, 1, 3)[0])
    assert is_pinned(split(x, 2)[0]) or find(x).kind == SUM


def test_cutting_one_row_cuts_inside_it() -> None:
    x = product([factor(3), factor(4)])
    piece, handles = cut(x, 5, 7)
    assert piece.size == 2
    assert len(handles) == 2


# --- families


def take_apart() -> tuple[Term, list[Term], list[tuple[Term, Term]]]:
    """A fused layer's axis (3 h d), and the heads and channels of its three parts."""
    fused = factor(24)
    three, h, d = regroup([fused], [3, 2, 4])
    members = []
    for i in range(3):
        _, handles = cut(three, i, i + 1)
        members.append((restrict(h, handles), restrict(d, handles)))
    return fused, [three, h, d], members


def test_parts_have_permutations_of_their_own_until_something_says_otherwise() -> None:
    _, (_, h, d), [q, k, v] = take_apart()
    assert find(h).kind == find(d).kind == FAMILY
    for a, b in itertools.combinations((q, k, v), 2):
        assert not same(a[0], b[0])
        assert not same(a[1], b[1])
    unify(q[0], k[0])
    unify(q[1], k[1])
    again = restrict(d, cut(take_apart()[1][0], 0, 1)[1])  # another axis: not that family's
    assert not same(again, q[1])
    assert same(q[1], k[1])
    assert not same(q[1], v[1])


def test_cutting_again_gives_the_same_members() -> None:
    _, (three, h, d), members = take_apart()
    for i, (head, channel) in enumerate(members):
        _, handles = cut(three, i, i + 1)
        assert same(restrict(h, handles), head)
        assert same(restrict(d, handles), channel)


def test_a_family_that_collapses_is_one() -> None:
    _, (_, h, d), members = take_apart()
    collapse(d)
    assert all(same(channel, d) for _, channel in members)
    assert not same(members[0][0], members[1][0])
    pin(members[1][0], WHY)
    collapse(h)
    assert is_pinned(members[2][0])


def test_members_follow_structure() -> None:
    _, (_, _, d), members = take_apart()
    split(members[0][1], 2)
    left, right = split(d, 2)
    assert (left.size, right.size) == (2, 2)
    assert all(sizes(factors(channel)) == [2, 2] for _, channel in members)
    piece, _ = cut(left, 0, 1)
    assert piece.size == 1
    assert all(sizes(parts_of(factors(channel)[0])) == [1, 1] for _, channel in members)


def test_what_is_rigid_has_no_members() -> None:
    x, t = factor(3), factor(5)
    make_rigid(t, [x])
    _, handles = cut(x, 0, 1)
    assert same(restrict(t, handles), t)
    assert find(t).kind == FACTOR


def test_members_commute_for_cuts_of_two_axes_in_either_order() -> None:
    a, b, t = factor(4), factor(6), factor(5)
    handles = [cut(a, 0, 1)[1], cut(b, 2, 4)[1]]
    first = restrict(restrict(t, handles[0]), handles[1])
    second = restrict(restrict(t, handles[1]), handles[0])
    assert same(first, second)
    elsewhere = restrict(restrict(t, cut(a, 1, 2)[1]), handles[1])
    assert not same(first, elsewhere)


def test_joining_is_the_inverse_of_cutting() -> None:
    a, t = factor(6), factor(5)
    tensors = []
    for start, stop in ((0, 2), (2, 6)):
        piece, handles = cut(a, start, stop)
        tensors.append([piece, restrict(t, handles)])
    joined, channels = concatenate(tensors, 0)
    unify(joined, a)
    unify(channels, t)
    assert not is_pinned(t)
    assert not same(tensors[0][1], tensors[1][1])


def test_joining_tensors_makes_a_sum_and_families() -> None:
    x, y = [factor(2), factor(5)], [factor(3), factor(5)]
    rows, columns = concatenate([x, y], 0)
    assert sizes(parts_of(rows)) == [2, 3]
    assert find(columns).kind == FAMILY
    columns, rows = concatenate([[factor(5), factor(2)], [factor(5, WHY), factor(3)]], 1)
    assert sizes(parts_of(rows)) == [2, 3]
    assert concatenate([x], 0) == x


def test_joining_pinned_axes_leaves_them_pinned() -> None:
    a, b = factor(5, WHY), factor(5, WHY)
    _, columns = concatenate([[factor(2), a], [factor(3), b]], 0)
    assert same(a, b)
    assert same(columns, a)


# --- constants


def test_a_constant_takes_any_term_and_restricts_none() -> None:
    x = factor(6)
    assert same(meet(constant(6), x), x)
    assert same(meet(x, constant(6)), x)
    unify(constant(6), x)
    assert find(x).kind == FACTOR
    assert find(x).pin is None


def test_heads_that_share_keys() -> None:
    """Queries (n), keys repeated for each group (h constant): n is (h g), and g is bound by nothing."""
    n, h = factor(6), factor(2)
    found = meet(n, product([h, constant(3)]))
    assert sizes(factors(n)) == [2, 3]
    assert same(factors(n)[0], h)
    assert same(found, n) or [find(f) for f in factors(found)] == factors(n)
    assert not is_pinned(factors(n)[1])


def test_constants_meet_part_by_part() -> None:
    x = factor(5)
    found = meet(total([factor(2), constant(3)]), x)
    assert sizes(parts_of(x)) == [2, 3]
    assert all(map(same, parts_of(found), parts_of(x)))
    y = factor(6)
    meet(product([constant(2), factor(3)]), y)
    assert sizes(factors(y)) == [2, 3]


def test_constants_that_do_not_fit_pin() -> None:
    a, b = product([constant(4), factor(3)]), product([factor(6), factor(2)])
    found = meet(a, b)
    assert found.size == 12
    assert is_pinned(b)


def test_broadcasting() -> None:
    a, b, c = factor(2), factor(3), factor(4)
    found = broadcast([[a, factor(1), c], [b, factor(4)], [constant(3), factor(1)]])
    assert same(found[0], a)
    assert same(found[1], b)
    assert same(found[2], c)
    with pytest.raises(Misfit):
        broadcast([[factor(2)], [factor(3)]])


# --- long loops


def test_slices_of_slices_are_flat() -> None:
    """``x = x[1:]`` in a loop: sums and families as deep as the loop is long."""
    length = 3000
    whole, channels = factor(2 * length), factor(6)
    axis, inner, heads = whole, channels, []
    for _ in range(length - 1):
        heads.append(restrict(inner, cut(axis, 0, 2)[1]))
        axis, handles = cut(axis, 2, axis.size)
        inner = restrict(inner, handles)
    assert len(parts_of(whole)) == length
    assert len(members_of(channels)) == length
    assert len({find(head) for head in heads}) == length - 1
    unify(heads[0], heads[-1])
    collapse(channels)
    assert same(heads[0], inner)
    assert not is_pinned(whole)
    pin(whole, WHY)
    assert is_pinned(whole)


def test_members_of_members_are_members_of_the_whole() -> None:
    x, t = factor(9), factor(5)
    rest, handles = cut(x, 3, 9)
    inner = restrict(t, handles)
    _, handles = cut(rest, 0, 2)
    piece = restrict(inner, handles)
    assert sizes([part for part, _ in members_of(t)]) == [3, 2, 4]
    assert same(restrict(t, [(x, 3, 5)]), piece)


# --- it ends


def test_units_that_are_made_one_do_not_contain_themselves() -> None:
    """Parts of length 1 are made one even where one of them is a product that has the other."""
    unit = factor(1)
    whole = product([unit, factor(1)])
    unify(total([unit, factor(2)]), total([whole, factor(2)]))
    check(unit, whole)


def test_a_term_inside_itself_is_no_endless_loop() -> None:
    x = factor(6)
    unify(x, family(factor(2), [factor(1), factor(1)], [x, factor(6)]))
    assert find(x).size == 6
    h, d = factor(4), factor(4)
    unify(product([h, d]), product([d, h]))
    assert same(h, d)
    a, b = factor(2), factor(8)
    unify(product([a, b]), product([b, a]))  # b = (a ...) = (... a): all four of one kind
    assert sum(n > 1 for n in sizes(factors(b))) >= 1
    check(a, b)


def check(*terms: Term) -> None:
    """Sizes are consistent, and no structure is inside itself."""
    inside: set[Term] = set()

    def walk(term: Term) -> None:
        term = find(term)
        assert term not in inside, "a term inside itself"
        inside.add(term)
        children = [find(child) for child in term.children]
        if term.kind == PRODUCT:
            size = 1
            for child in children:
                size *= child.size
            assert size == term.size
        elif term.kind == SUM:
            assert sum(sizes(children)) == term.size
        elif term.kind == FAMILY:
            assert all(child.size == term.size for child in children)
            assert term.over is not None
            assert sum(find(part).size for part in term.parts) == find(term.over).size
        else:
            assert term.kind in (FACTOR, CONSTANT)
            assert not children
        if term.pin is not None:
            assert all(is_pinned(child) or child.kind == CONSTANT for child in children)
        for child in children:
            walk(child)
        inside.discard(term)

    for term in terms:
        walk(term)


class Axes:
    """Tensors whose axes are rearranged and equated at random."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        shape = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), min_size=1, max_size=3)
        self.tensors: list[list[Term]] = [[factor(n) for n in draw(shape)] for _ in range(draw(st.integers(1, 3)))]
        self.all = [(term, term.size) for tensor in self.tensors for term in tensor]

    def add(self, tensor: list[Term]) -> None:
        self.tensors.append(tensor)
        self.all += [(term, term.size) for term in tensor]

    def tensor(self) -> list[Term]:
        return self.draw(st.sampled_from(self.tensors))

    def step(self) -> None:
        name = self.draw(st.sampled_from([name for name in dir(self) if name.startswith("do_")]))
        try:
            getattr(self, name)(self.tensor())
        except Misfit:
            pass  # whoever asked for it pins

    def do_view(self, tensor: list[Term]) -> None:
        size, found = 1, []
        for term in tensor:
            size *= term.size
        while size > 1 and len(found) < 3:
            found.append(self.draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0])))
            size //= found[-1]
        self.add(regroup(tensor, [*found, size]))

    def do_permute(self, tensor: list[Term]) -> None:
        self.add(self.draw(st.permutations(tensor)))

    def do_cut(self, tensor: list[Term]) -> None:
        dim = self.draw(st.integers(0, len(tensor) - 1))
        start = self.draw(st.integers(0, tensor[dim].size - 1))
        stop = self.draw(st.integers(start + 1, tensor[dim].size))
        piece, handles = cut(tensor[dim], start, stop)
        self.add([piece if i == dim else restrict(term, handles) for i, term in enumerate(tensor)])

    def do_cat(self, tensor: list[Term]) -> None:
        dim = self.draw(st.integers(0, len(tensor) - 1))

        def rest(axes: list[Term]) -> list[int]:
            return [*sizes(axes)[:dim], 0, *sizes(axes)[dim + 1 :]]

        fits = [other for other in self.tensors if len(other) == len(tensor) and rest(other) == rest(tensor)]
        if sum(term.size for term in tensor) < 60:
            self.add(concatenate([tensor, self.draw(st.sampled_from(fits))], dim))

    def do_equate(self, tensor: list[Term]) -> None:
        fits = [other for other in self.tensors if sizes(other) == sizes(tensor)]
        self.add(broadcast([tensor, self.draw(st.sampled_from(fits))]))

    def do_equate_axes(self, tensor: list[Term]) -> None:
        a, b = self.draw(st.sampled_from(tensor)), self.draw(st.sampled_from(self.tensor()))
        if a.size == b.size:
            meet(a, b)

    def do_expand(self, tensor: list[Term]) -> None:
        self.add([*tensor, constant(self.draw(st.integers(1, 4)))])

    def do_pin(self, tensor: list[Term]) -> None:
        pin(self.draw(st.sampled_from(tensor)), WHY)

    def do_collapse(self, tensor: list[Term]) -> None:
        collapse(self.draw(st.sampled_from(tensor)))

    def do_make_rigid(self, tensor: list[Term]) -> None:
        make_rigid(tensor[0], tensor[1:])


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_sequence_ends_with_consistent_sizes(data: st.DataObject) -> None:
    axes = Axes(data.draw)
    for _ in range(data.draw(st.integers(1, 12))):
        axes.step()
    for term, size in axes.all:
        assert find(term).size == size
    check(*(term for term, _ in axes.all))


@pytest.mark.parametrize("swap", [False, True])
def test_a_part_of_length_one_is_never_inside_itself(swap: bool) -> None:
    """It is the same part as a product that it stands in; to bind it to that product would make a term without end."""
    part = factor(1)
    whole = Term(PRODUCT, 1, [part, factor(1)])
    sums = total([whole, factor(3)]), total([part, factor(3)])
    unify(*(sums[::-1] if swap else sums))
    assert all(find(child) is not find(whole) for child in find(whole).children)
