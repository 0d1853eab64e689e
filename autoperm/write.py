"""Settled terms to patterns: the last step of discovery, where variables become names.

A family of a parameter that cannot be written (:mod:`autoperm.trees`), because its axis is another axis of the
parameter, collapses: fewer symmetries, never a wrong one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase

from .axes import collapse
from .graph import Call, Graph, Value
from .presence import Cell, Members, all_cells, pin_disturbed, settle, varies_over, with_units
from .rules import op_name
from .rules.meaning import Positions
from .signature import Interleaving, Name, Pattern, Pinned, Product, Sum
from .signature import Term as Notation
from .spec import Factor, PermutationSpec
from .terms import CONSTANT, SUM, Arranged, Pin, Term, factor, find, parts_of, pin
from .trees import Tree, UnwrittenError, at_part, leaves, tree_of


@dataclass(frozen=True, eq=False)
class Inference:
    """What discovery ends with, before it is put into patterns: specifications and explanations are read off it.

    Attributes:
        graph: the traced model.
        terms: the terms of every value's axes.
        meanings: for values whose numbers are positions, along which axis.
        trees: how the axes of the graph's tensors are written.
        over: for each factor that may move, the factors it varies over.
        merged: for each factor that is several neighbours which nothing tells apart, those neighbours.
        unknown: operations that no rule knew.
    """

    graph: Graph
    terms: Mapping[Value, Sequence[Term]]
    meanings: Mapping[Value, Positions]
    trees: Mapping[Value, Sequence[Tree]]
    over: Mapping[Term, Sequence[Term]]
    merged: Mapping[Term, Sequence[Term]]
    unknown: Sequence[object]

    @cached_property
    def factors(self) -> Mapping[Term, Factor]:
        """The factors that have a name in the specification."""
        return _name_factors(list(self.trees.values()), self.over, False)

    @cached_property
    def all_factors(self) -> Mapping[Term, Factor]:
        """Every factor with a name, the pinned ones too."""
        return _name_factors(list(self.trees.values()), self.over, True)

    def spec(self, *, name_pinned: bool = False) -> PermutationSpec:
        """Write the patterns of the graph's tensors.

        Args:
            name_pinned: name every factor, the pinned ones too, so that it can be seen which axes are pinned together.
        """
        factors = self.all_factors if name_pinned else self.factors
        tensors = self.graph.tensors.items()
        first = {value: name for name, value in reversed(tensors)}
        return PermutationSpec(
            patterns={name: tuple(_notation(tree, factors) for tree in self.trees[value]) for name, value in tensors},
            shapes={name: value.shape for name, value in tensors},
            factors={factor.name: factor for factor in sorted(factors.values(), key=lambda factor: len(factor.over))},
            tied={name: first[value] for name, value in tensors if first[value] != name},
            reasons={name: tuple(map(_reason, self.trees[value])) for name, value in tensors},
            unknown=tuple(map(str, self.unknown)),
            notes=tuple(self.graph.notes),
            inference=self,
        )

    def patterns(self, value: Value) -> list[tuple[tuple[int, int, int] | None, Pattern]]:
        """Write the pattern of any value, an activation too.

        Where other factors stand at other places of an axis, as in the hidden states of stacked layers, there is one
        pattern for each part of that axis.

        Returns:
            Pairs of the axis, start and length of a part (None: the whole value) and its pattern; empty if that cannot
            be written: if an axis moves that no parameter has, such as slots sorted by the expert they go to; if a
            factor is there without what it varies over; or if neighbours that are one factor are on two axes.
        """
        terms = list(map(find, self.terms[value]))
        members = Members()
        whole = self._pattern(terms, members)
        if whole is not None:
            return [(None, whole)]
        for axis, term in enumerate(terms):
            if term.kind == SUM:
                found: list[tuple[tuple[int, int, int] | None, Pattern]] = []
                start = 0
                for part in parts_of(term):
                    rest = [part if i == axis else at_part(other, part, members) for i, other in enumerate(terms)]
                    pattern = self._pattern(rest, members)
                    if pattern is not None:
                        found.append(((axis, start, part.size), pattern))
                    start += part.size
                if found:
                    return found
        return []

    def _pattern(self, terms: Sequence[Term], members: Members) -> Pattern | None:
        merges = {parts[0]: (parts[1], whole) for whole, parts in self.merged.items()}
        try:
            trees = [_merged_tree(tree_of([find(term)], members), merges) for term in terms]
        except UnwrittenError:
            return None
        free = (leaf for tree in trees for leaf in leaves(tree) if leaf.pin is None and leaf.kind != CONSTANT)
        if any(leaf.size > 1 and leaf not in self.factors for leaf in free):
            return None
        here = [self.factors[leaf] for tree in trees for leaf in leaves(tree) if leaf in self.factors]
        if not {outer for found in here for outer in found.over} <= {found.name for found in here}:
            return None
        return tuple(_notation(tree, self.factors) for tree in trees)

    def reasons(self) -> dict[str, str]:
        """Say for each pinned factor of ``spec(name_pinned=True)`` why it is pinned."""
        pins = {factor.name: leaf.pin for leaf, factor in self.all_factors.items()}
        return {name: describe_pin(why) for name, why in pins.items() if why is not None}


@dataclass(frozen=True, eq=False)
class Tensors:
    """The terms of all tensors of a graph.

    Attributes:
        computed: those of the graph's own tensors first and in their order, then all that are computed.
        moved: results of operations that only move numbers or leave some out: what stands nowhere else is not used.
    """

    computed: Sequence[Sequence[Term]]
    moved: Sequence[Sequence[Term]]


def conclude(
    graph: Graph,
    tensors: Tensors,
    terms: Mapping[Value, Sequence[Term]],
    meanings: Mapping[Value, Positions],
    unknown: Sequence[object],
    arranged: Sequence[Arranged] = (),
) -> Inference:
    """Settle terms, and see how the axes of a graph's tensors are written.

    Args:
        graph: the traced model.
        tensors: the terms of every tensor.
        terms: the terms of every value.
        meanings: for values whose numbers are positions, along which axis.
        unknown: operations that no rule knew.
        arranged: axes that are sorted by the positions along another.
    """
    values = list(dict.fromkeys(graph.tensors.values()))
    parameters = tensors.computed[: len(values)]
    others = [*tensors.moved, *tensors.computed[len(values) :]]
    while True:
        arranged = pin_disturbed(arranged, parameters)
        found = [with_units(axes, arranged) for axes in others] if arranged else others
        settled, written = _settle_and_write([*parameters, *found], values, len(values) + len(tensors.moved))
        if len(pin_disturbed(arranged, parameters)) == len(arranged):
            break
    _pin_unused(settled)
    merges = _neighbours(settled, written.values())
    trees = {value: [_merged_tree(tree, merges) for tree in axes] for value, axes in written.items()}
    over = varies_over([_merge(cell, merges) for cell in settled])
    return Inference(graph, terms, meanings, trees, over, _merged(merges), unknown)


def _settle_and_write(
    tensors: Sequence[Sequence[Term]], values: Sequence[Value], unused: int
) -> tuple[dict[Cell, bool], dict[Value, list[Tree]]]:
    """Let families settle until all that are left can be written."""
    while True:
        settle(tensors)
        members = Members()
        written: dict[Value, list[Tree]] = {}
        for value, axes in zip(values, tensors, strict=False):
            try:
                written[value] = [tree_of([find(term)], members) for term in axes]
            except UnwrittenError as error:  # settle again and start over
                collapse(error.family)
        if len(written) == len(values):
            return all_cells(tensors, unused), written


def _name_factors(
    tensors: Sequence[Sequence[Tree]], over: Mapping[Term, Sequence[Term]], name_pinned: bool
) -> dict[Term, Factor]:
    """Name every factor that may move, and every pinned one that another varies over, or all."""
    indices = {axis for axes in over.values() for axis in axes}
    names: dict[Term, str] = {}
    for trees in tensors:
        for tree in trees:
            for leaf in leaves(tree):
                if leaf not in names and leaf.size > 1 and (leaf.pin is None or leaf in indices or name_pinned):
                    names[leaf] = _letters(len(names))
    return {
        leaf: Factor(
            name,
            leaf.size,
            tuple(names[axis] for axis in over.get(leaf, ()) if axis in names),
            leaf.pin is not None,
        )
        for leaf, name in names.items()
    }


def _pin_unused(cells: Mapping[Cell, bool]) -> None:
    """Pin what nothing is computed from, such as the rows of a position table beyond the length that was traced."""
    computed = {term for cell, inside in cells.items() if inside for axis in cell for term in axis}
    for cell in cells:
        for axis in cell:
            for term in axis:
                if term not in computed:
                    pin(term, Pin("the traced path never uses this part"))


# --- neighbours that nothing tells apart


def _neighbours(cells: Iterable[Cell], trees: Iterable[list[Tree]]) -> dict[Term, tuple[Term, Term]]:
    """Find pairs of factors that stand side by side wherever either stands: they are one factor.

    Returns:
        For the left factor of each pair, its right neighbour and the factor that both become.
    """
    after: dict[Term, set[Term | None]] = defaultdict(set)
    before: dict[Term, set[Term | None]] = defaultdict(set)

    def note(row: Sequence[Term | None]) -> None:
        for left, right in zip([None, *row], [*row, None], strict=True):
            if left is not None:
                after[left].add(right)
            if right is not None:
                before[right].add(left)

    def walk(tree: Tree) -> None:
        if isinstance(tree, Term):
            note([tree])
            return
        kind, children = tree
        if kind == "product":
            note([child if isinstance(child, Term) else None for child in children])
        for child in children:
            if kind != "product" or not isinstance(child, Term):
                walk(child)

    # Neighbouring axes of an activation are side by side too: a view may join them. An axis of length 1 between them
    # (of no factors) may be longer for other inputs.
    for cell in cells:
        note([term for axis in cell for term in (axis or (None,))])
    for nodes in trees:
        for node in nodes:
            walk(node)
    right_of: dict[Term, Term] = {}
    for left, following in after.items():
        right = next(iter(following))
        if right is None or len(following) > 1 or before[right] != {left}:
            continue
        if left.pin is None and right.pin is None:
            right_of[left] = right

    def width(term: Term) -> int:
        return term.size * (width(right_of[term]) if term in right_of else 1)

    return {left: (right, factor(width(left))) for left, right in right_of.items()}


def _merged(merges: Mapping[Term, tuple[Term, Term]]) -> dict[Term, list[Term]]:
    """For each factor that neighbours become, those neighbours."""
    found: dict[Term, list[Term]] = {}
    for left, (right, whole) in merges.items():
        found[whole] = [left, right]
        while found[whole][-1] in merges:
            found[whole].append(merges[found[whole][-1]][0])
    return found


def _merge(cell: Cell, merges: Mapping[Term, tuple[Term, Term]]) -> Cell:
    """Put merged factors into a cell, in the axis of the left one of each pair."""
    row: list[tuple[int, Term]] = []
    for place, term in reversed([(place, term) for place, axis in enumerate(cell) for term in axis]):
        if term in merges:
            row[-1] = (place, merges[term][1])
        else:
            row.append((place, term))
    return tuple(tuple(term for at, term in reversed(row) if at == place) for place in range(len(cell)))


def _merged_tree(tree: Tree, merges: Mapping[Term, tuple[Term, Term]]) -> Tree:
    if isinstance(tree, Term):
        return tree
    kind, children = tree
    children = [_merged_tree(child, merges) for child in children]
    if kind == "product":
        result: list[Tree] = []
        for child in reversed(children):
            if isinstance(child, Term) and child in merges and result:
                result[-1] = merges[child][1]
            else:
                result.append(child)
        children = result[::-1]
    return children[0] if len(children) == 1 and kind == "product" else (kind, children)


# --- names and notation


def _letters(number: int) -> str:
    """Name the factors a, b, ..., z, aa, ab, ... in the order in which the tensors carry them.

    Short names keep patterns readable; which module a factor belongs to stands in the table of factors.
    """
    name = ""
    while number >= 0:
        number, rest = divmod(number, len(ascii_lowercase))
        name = ascii_lowercase[rest] + name
        number -= 1
    return name


def _notation(tree: Tree, found: Mapping[Term, Factor], *, inside: bool = False) -> Notation:
    if isinstance(tree, Term):
        if tree in found:
            return Name(found[tree].name)
        return Pinned(tree.size) if inside or tree.size == 1 else Pinned()
    kind, children = tree
    if kind != "turn" and all(leaf not in found for leaf in leaves(tree)):
        return Pinned(_size(tree)) if inside else Pinned()
    if kind == "turns":
        return Interleaving(tuple(_notation(child, found, inside=True) for child in children))
    if kind == "turn":
        lead, rest = (_notation(child, found, inside=True) for child in children)
        if isinstance(rest, Pinned) and rest.size == 1 and not isinstance(lead, Product):
            return lead
        return Product((lead, *(rest.terms if isinstance(rest, Product) else [rest])))
    inner: list[Notation] = []
    for child in children:
        node = _notation(child, found, inside=True)
        previous = inner[-1] if inner else None
        if isinstance(node, Pinned) and isinstance(previous, Pinned) and node.size and previous.size:
            inner[-1] = Pinned(previous.size * node.size if kind == "product" else previous.size + node.size)
        elif type(node) is (Product if kind == "product" else Sum):
            inner += node.terms
        else:
            inner.append(node)
    return inner[0] if len(inner) == 1 else (Product if kind == "product" else Sum)(tuple(inner))


def _size(tree: Tree) -> int:
    if isinstance(tree, Term):
        return tree.size
    sizes = [_size(child) for child in tree[1]]
    if tree[0] in ("sum", "turns"):
        return sum(sizes)
    result = 1
    for size in sizes:
        result *= size
    return result


def _reason(tree: Tree) -> str:
    """Why an axis, or a part of it, is pinned."""
    for leaf in leaves(tree):
        if leaf.pin is not None and leaf.size > 1 and leaf.kind != CONSTANT:
            return describe_pin(leaf.pin)
    return ""


def describe_pin(why: Pin) -> str:
    """Say in words why a factor is pinned, and where."""
    if isinstance(why.origin, Call):
        return f"{why.reason}: {op_name(why.origin.op)}, {why.origin.where}"
    return why.reason
