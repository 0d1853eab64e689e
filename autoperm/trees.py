"""Terms to trees: how the axes of a tensor are written, before its factors have names.

A family that lies behind a sum in its own axis is written by distributing the sum over it: three members of ``h`` and
``d`` over the parts of an axis of length 3 are ``((h d) + (h d) + (h e))``. One that stands right before the sum is
written by turns, ``((h d) | (i e))``; what takes turns may itself be written so, ``((a | b) | c)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .presence import Members, flatten
from .terms import FAMILY, PRODUCT, SUM, Term, factor, find, has_family, parts_of

Tree = Term | tuple[str, list["Tree"]]
"""A leaf term, or ("product" | "sum" | "turns" | "turn", children)."""


class UnwrittenError(Exception):
    """A family cannot be written."""

    def __init__(self, family: Term) -> None:
        super().__init__()
        self.family = family


def tree_of(terms: list[Term], members: Members) -> Tree:
    """Write a row-major product of terms, distributing sums over the families behind them."""
    flat = flatten(terms)
    nodes: list[Tree] = []
    for index, term in enumerate(flat):
        if term.kind == FAMILY:
            turns = _turns(flat[index:], members)
            if turns is None:
                raise UnwrittenError(term)
            nodes.append(("turns", turns))
            break
        if term.kind == SUM:
            rest = flat[index + 1 :]
            if any(has_family(other) for other in rest):
                rows = [[part, *(at_part(other, part, members) for other in rest)] for part in parts_of(term)]
                nodes.append(("sum", [tree_of(row, members) for row in rows]))
                break
            nodes.append(("sum", [tree_of([part], members) for part in parts_of(term)]))
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
        lead = [at_part(term, part, members) for term in terms[:place]]
        rest = [part, *(at_part(term, part, members) for term in terms[place + 1 :])]
        found.append(("turn", [tree_of(lead, members), tree_of(rest, members)]))
    return found


def at_part(term: Term, part: Term, members: Members) -> Term:
    """Return a term as it is at a part of an axis to its left."""
    term = find(term)
    while term.kind == FAMILY:
        member = members.at_part(term, part)
        if member is None:
            return term
        term = member
    if term.kind in (PRODUCT, SUM) and has_family(term):
        children = [at_part(child, part, members) for child in term.children]
        return Term(term.kind, term.size, children)
    return term


def leaves(tree: Tree) -> Iterator[Term]:
    """Yield the factors of a tree, left to right."""
    if isinstance(tree, Term):
        yield tree
    else:
        for child in tree[1]:
            yield from leaves(child)
