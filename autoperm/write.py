"""Settled terms to patterns: the last step of discovery, where variables become names.

A family that lies behind a sum in its own axis is written by distributing the sum over it: three members of ``h`` and
``d`` over the parts of an axis of length 3 are ``((h d) + (h d) + (h e))``. A family that cannot be written so (its
axis is another axis of the parameter) collapses: fewer symmetries, never a wrong one. One that stands right before the
sum is written by turns, ``((h d) | (i e))``; what takes turns may itself be written so, ``((a | b) | c)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from string import ascii_lowercase

from .axes import collapse
from .graph import Call, Graph, Value
from .presence import Cell, Members, all_cells, flatten, settle, varies_over
from .rules import op_name
from .signature import Interleaving, Name, Pinned, Product, Sum
from .signature import Term as Notation
from .spec import Factor, PermutationSpec
from .terms import CONSTANT, FAMILY, PRODUCT, SUM, Pin, Term, factor, find, has_family, parts_of, pin


class _CollapsedError(Exception):
    """A family could not be written and was collapsed; settle again and start over."""


def write_spec(graph: Graph, tensors: Sequence[Sequence[Term]], unknown: Sequence[object]) -> PermutationSpec:
    """Settle terms and write the patterns of a graph's tensors.

    Args:
        graph: the traced model.
        tensors: the terms of every tensor, those of the graph's own tensors first and in their order.
        unknown: operations that no rule knew.
    """
    values = list(dict.fromkeys(graph.tensors.values()))
    settled, written = _settle_and_write(tensors, values)
    _pin_unused(settled)
    merges = _neighbours(settled, written.values())
    trees = {value: [_merged_tree(tree, merges) for tree in axes] for value, axes in written.items()}
    over = varies_over([_merge(cell, merges) for cell in settled])
    factors = _name_factors(list(trees.values()), over)
    first = {value: name for name, value in reversed(graph.tensors.items())}
    tensors_of = graph.tensors.items()
    return PermutationSpec(
        patterns={name: tuple(_notation(tree, factors) for tree in trees[value]) for name, value in tensors_of},
        shapes={name: value.shape for name, value in tensors_of},
        factors={factor.name: factor for factor in sorted(factors.values(), key=lambda factor: len(factor.over))},
        tied={name: first[value] for name, value in tensors_of if first[value] != name},
        reasons={name: tuple(map(_reason, trees[value])) for name, value in tensors_of},
        unknown=tuple(map(str, unknown)),
        notes=tuple(graph.notes),
    )


def _settle_and_write(
    tensors: Sequence[Sequence[Term]], values: Sequence[Value]
) -> tuple[dict[Cell, bool], dict[Value, list[Tree]]]:
    """Let families settle until all that are left can be written."""
    while True:
        settle(tensors)
        members = Members()
        written: dict[Value, list[Tree]] = {}
        for value, axes in zip(values, tensors, strict=False):
            with suppress(_CollapsedError):
                written[value] = [_tree([find(term)], members) for term in axes]
        if len(written) == len(values):
            return all_cells(tensors, len(values)), written


def _name_factors(tensors: Sequence[Sequence[Tree]], over: Mapping[Term, Sequence[Term]]) -> dict[Term, Factor]:
    """Name every factor that may move, and every pinned one that another varies over."""
    indices = {axis for axes in over.values() for axis in axes}
    names: dict[Term, str] = {}
    for trees in tensors:
        for tree in trees:
            for leaf in _leaves(tree):
                if leaf not in names and leaf.size > 1 and (leaf.pin is None or leaf in indices):
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


# --- a tree: a leaf term, or ("product" | "sum" | "turns" | "turn", children)

Tree = Term | tuple[str, list["Tree"]]


def _tree(terms: list[Term], members: Members) -> Tree:
    """Write a row-major product of terms, distributing sums over the families behind them."""
    flat = flatten(terms)
    nodes: list[Tree] = []
    for index, term in enumerate(flat):
        if term.kind == FAMILY:
            turns = _turns(flat[index:], members)
            if turns is None:
                collapse(term)
                raise _CollapsedError
            nodes.append(("turns", turns))
            break
        if term.kind == SUM:
            rest = flat[index + 1 :]
            if any(has_family(other) for other in rest):
                rows = [[part, *(_at(other, part, members) for other in rest)] for part in parts_of(term)]
                nodes.append(("sum", [_tree(row, members) for row in rows]))
                break
            nodes.append(("sum", [_tree([part], members) for part in parts_of(term)]))
        elif term.size > 1:
            nodes.append(term)
    if not nodes:
        return flat[0] if flat else factor(1)
    return nodes[0] if len(nodes) == 1 else ("product", nodes)


def _turns(terms: Sequence[Term], members: Members) -> list[Tree] | None:
    """Write families over a sum behind them: the members take turns, each with its part of the sum."""
    place = next((index for index, term in enumerate(terms) if term.kind == SUM), None)
    if place is None:
        return None
    found: list[Tree] = []
    for part in parts_of(terms[place]):
        lead = [_at(term, part, members) for term in terms[:place]]
        rest = [part, *(_at(term, part, members) for term in terms[place + 1 :])]
        found.append(("turn", [_tree(lead, members), _tree(rest, members)]))
    return found


def _at(term: Term, part: Term, members: Members) -> Term:
    """Return a term as it is at a part of an axis to its left."""
    term = find(term)
    while term.kind == FAMILY:
        member = members.at_part(term, part)
        if member is None:
            return term
        term = member
    if term.kind in (PRODUCT, SUM) and has_family(term):
        children = [_at(child, part, members) for child in term.children]
        return Term(term.kind, term.size, children)
    return term


def _leaves(tree: Tree) -> Iterator[Term]:
    if isinstance(tree, Term):
        yield tree
    else:
        for child in tree[1]:
            yield from _leaves(child)


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
    if kind != "turn" and all(leaf not in found for leaf in _leaves(tree)):
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
    for leaf in _leaves(tree):
        if leaf.pin is not None and leaf.size > 1 and leaf.kind != CONSTANT:
            return describe_pin(leaf.pin)
    return ""


def describe_pin(why: Pin) -> str:
    """Say in words why a factor is pinned, and where."""
    if isinstance(why.origin, Call):
        return f"{why.reason}: {op_name(why.origin.op)}, {why.origin.where}"
    return why.reason
