"""Cells of a parameter: the plain products of factors that its pattern is made of, as views of the tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product as every

from einops import rearrange
from torch import Tensor

from .signature import Interleaving, Name, Product, Sum, Term
from .spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class _Leaf:
    name: str | None


@dataclass(frozen=True, slots=True)
class _Unflatten:
    sizes: tuple[int, ...]
    children: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Narrow:
    start: int
    size: int
    child: _Node


_Node = _Leaf | _Unflatten | _Narrow


@dataclass(frozen=True, slots=True)
class Cell:
    """One choice of a part for every sum in a parameter's pattern.

    Attributes:
        tensor: the parameter's name.
        names: for each dimension of :meth:`view` the factor's name, None where it is pinned.
        axes: for each dimension of the view the parameter's axis that it is a piece of.
    """

    tensor: str
    names: tuple[str | None, ...]
    axes: tuple[int, ...]
    nodes: tuple[_Node, ...]

    def view(self, tensor: Tensor) -> Tensor:
        """Return the cell as a view of the parameter, one dimension for each factor."""
        for axis in reversed(range(len(self.nodes))):
            tensor = _view(tensor, axis, self.nodes[axis])
        return tensor

    def dim(self, name: str, near: int | None = None) -> int:
        """Return the dimension of a factor; the one beside ``near``'s axis if there are several."""
        found = [dim for dim, other in enumerate(self.names) if other == name]
        if len(found) > 1 and near is not None:
            found = [dim for dim in found if self.axes[dim] == self.axes[near]]
        return found[0]


def unfold(tensor: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Turn one dimension into its row-major factors.

    Example:
        >>> import torch
        >>> unfold(torch.zeros(2, 12), 1, (3, 4)).shape
        torch.Size([2, 3, 4])
    """
    axes = [f"x{i}" for i in range(tensor.ndim)]
    inner = {f"y{i}": size for i, size in enumerate(sizes)}
    whole, parts = [*axes], [*axes]
    whole[dim], parts[dim] = f"({' '.join(inner)})", " ".join(inner)
    return rearrange(tensor, f"{' '.join(whole)} -> {' '.join(parts)}", **inner)


def _view(tensor: Tensor, dim: int, node: _Node) -> Tensor:
    if isinstance(node, _Narrow):
        return _view(tensor.narrow(dim, node.start, node.size), dim, node.child)
    if isinstance(node, _Unflatten):
        tensor = unfold(tensor, dim, node.sizes)
        for i in reversed(range(len(node.children))):
            tensor = _view(tensor, dim + i, node.children[i])
    return tensor


def cells(spec: PermutationSpec, tensor: str) -> list[Cell]:
    """Return the cells of a parameter.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns({"weight": "(a + b=2) c"}, nn.Linear(3, 6))
        >>> [cell.names for cell in cells(spec, "weight")]
        [('a', 'c'), ('b', 'c')]
    """
    found = []
    for nodes in every(*(list(_nodes(spec, term)) for term in spec.patterns[tensor])):
        leaves = [(leaf, axis) for axis, node in enumerate(nodes) for leaf in _leaves(node)]
        found.append(Cell(tensor, tuple(n for n, _ in leaves), tuple(axis for _, axis in leaves), tuple(nodes)))
    return found


def _nodes(spec: PermutationSpec, term: Term) -> Iterator[_Node]:
    if isinstance(term, Name):
        yield _Leaf(term.name)
    elif isinstance(term, Product):
        sizes = tuple(spec.size(inner) or 1 for inner in term.terms)
        for children in every(*(list(_nodes(spec, inner)) for inner in term.terms)):
            yield _Unflatten(sizes, tuple(children))
    elif isinstance(term, Sum):
        start = 0
        for inner in term.terms:
            size = spec.size(inner) or 1
            for child in _nodes(spec, inner):
                yield _Narrow(start, size, child)
            start += size
    elif isinstance(term, Interleaving):
        widths = [spec.size(rest) or 1 for _, rest in term.turns]
        start = 0
        for (lead, rest), width in zip(term.turns, widths, strict=True):
            for head, tail in every(_nodes(spec, lead), list(_nodes(spec, rest))):
                yield _Unflatten((spec.size(lead) or 1, sum(widths)), (head, _Narrow(start, width, tail)))
            start += width
    else:
        yield _Leaf(None)


def _leaves(node: _Node) -> list[str | None]:
    if isinstance(node, _Leaf):
        return [node.name]
    if isinstance(node, _Narrow):
        return _leaves(node.child)
    empty: list[str | None] = []
    return reduce(lambda found, child: found + _leaves(child), node.children, empty)
