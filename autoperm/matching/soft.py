"""Soft permutations: a doubly stochastic matrix for each factor and each position of what it varies over.

``out[i, j] = sum_i' P_h[i, i'] sum_j' P_d[i, j, j'] in[i', j']`` for an axis ``(h d)``: what varies over a factor is
indexed by the place where it ends up, as in :class:`~autoperm.Permutation`. So the soft permutations are a product of
Birkhoff polytopes, whose corners are the group's elements.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import layout
from ..layout import Cell
from ..permutation import Permutation
from ..spec import PermutationSpec
from .assignment import assign

Soft = dict[str, Tensor]
"""For each free factor a tensor of shape ``(*sizes of what it varies over, size, size)``, A's positions in rows."""


def uniform(spec: PermutationSpec, like: Tensor) -> Soft:
    """Return the barycentre: every unit goes everywhere alike.

    Args:
        spec: the specification.
        like: a tensor of the dtype and on the device wanted.
    """
    shapes = {factor.name: [*(spec.factors[outer].size for outer in factor.over), factor.size] for factor in spec.free}
    return {name: like.new_full((*shape, shape[-1]), 1 / max(shape[-1], 1)) for name, shape in shapes.items()}


def soften(permutation: Permutation, like: Tensor) -> Soft:
    """Return the matrices of a permutation.

    Example:
        >>> spec = PermutationSpec.from_patterns({"w": "h"}, {"w": torch.zeros(2)})
        >>> soften(Permutation(spec, {"h": torch.tensor([1, 0])}), torch.zeros(()))
        {'h': tensor([[0., 1.],
                [1., 0.]])}
    """
    found = {}
    for factor in permutation.spec.free:
        index = permutation[factor.name].to(like.device)
        found[factor.name] = torch.nn.functional.one_hot(index, factor.size).to(like.dtype)
    return found


def harden(spec: PermutationSpec, scores: Mapping[str, Tensor]) -> Permutation:
    """Return the permutation that picks the largest sum from matrices, such as the one nearest to a soft one.

    Raises:
        WeightsError: if a score is NaN or infinite.
    """
    indices = {}
    for name, matrix in scores.items():
        index, _ = assign(matrix.detach().to("cpu", torch.float64).numpy())
        indices[name] = torch.from_numpy(index)
    return Permutation(spec, indices)


def random_soft(spec: PermutationSpec, like: Tensor, generator: torch.Generator) -> Soft:
    """Draw from the interior: half the barycentre, half the mean of three random permutations."""
    centre = uniform(spec, like)
    corners = [soften(spec.random(generator), like) for _ in range(3)]
    return {name: (matrix + sum(corner[name] for corner in corners) / 3) / 2 for name, matrix in centre.items()}


def mix(
    spec: PermutationSpec, soft: Mapping[str, Tensor], cell: Cell, view: Tensor, dim: int, *, back: bool = False
) -> Tensor:
    """Return the view of a cell, mixed along one of its dimensions; differentiable in both.

    Args:
        spec: the specification.
        soft: matrices by factor.
        cell: the cell.
        view: the cell of some tensor. What the factor varies over is indexed as it stands there.
        dim: the dimension.
        back: mix by the transposed matrices, from places to where their units come from.
    """
    name = str(cell.names[dim])
    over = [cell.dim(outer, dim) for outer in spec.factors[name].over]
    rest = [other for other in range(view.ndim) if other not in over and other != dim]
    order = [*over, dim, *rest]
    front = view.permute(order)
    matrix = soft[name].to(view)
    mixed = (matrix.mT if back else matrix) @ front.reshape(*front.shape[: len(over) + 1], -1)
    return mixed.reshape(front.shape).permute(sorted(range(len(order)), key=order.__getitem__))


def act(spec: PermutationSpec, soft: Mapping[str, Tensor], cell: Cell, view: Tensor) -> Tensor:
    """Return the view of a cell, mixed along all its dimensions; differentiable in both."""
    free = [(dim, name) for dim, name in enumerate(cell.names) if name is not None and name in soft]
    # From the outermost in: where a unit ends up is known before the matrix that belongs to that place is needed.
    for dim, _ in sorted(free, key=lambda item: len(spec.factors[item[1]].over)):
        view = mix(spec, soft, cell, view, dim)
    return view


def soft_apply(spec: PermutationSpec, soft: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move tensors by a soft permutation; differentiable in the matrices and in the tensors.

    Args:
        spec: which axes of them carry which factor.
        soft: matrices by factor; a factor that is left out does not move.
        params: tensors by name. Those that the specification does not know, or that carry nothing that moves, are
            passed on as they are.

    Returns:
        The moved tensors. Names that are tied share one tensor.
    """
    moved: dict[str, Tensor] = {}
    for name in (*(name for name in params if name not in spec.tied), *(name for name in params if name in spec.tied)):
        if name in spec.tied and spec.tied[name] in moved:
            moved[name] = moved[spec.tied[name]]
            continue
        cells = layout.cells(spec, name) if name in spec.patterns else []
        if not any(factor in soft for cell in cells for factor in cell.names):
            moved[name] = params[name]
            continue
        moved[name] = torch.empty_like(params[name], memory_format=torch.contiguous_format)
        for cell in cells:
            cell.view(moved[name]).copy_(act(spec, soft, cell, cell.view(params[name])))
    return {name: moved[name] for name in params}
