"""What the other matchers are compared with: no matching, and a greedy pass from the input to the output."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..permutation import Permutation
from ..spec import PermutationSpec
from .blocks import find_blocks
from .problem import Kernel, Problem


def identity_matching(
    spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
) -> Permutation:
    """Leave B as it is.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; they are not read.
        params_b: tensors of model B by name; they are not read.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
        >>> identity_matching(spec, {}, {}).is_identity
        True
    """
    return spec.identity()


def greedy_matching(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "linear",
) -> Permutation:
    """Match layer by layer from the input to the output, each once, by its incoming weights.

    Parameters are read in the order of the specification, which is the order in which the model lists them. A factor is
    matched when the first parameter that carries it is met, from that parameter and the vectors that follow it
    (biases, scales); other factors of those are settled already. What comes later is not looked at: that is what
    weight matching does better.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.

    Returns:
        The permutation of B.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = greedy_matching(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.compose(planted) == spec.identity()
        True

    Reference:
        Singh and Jaggi, *Model Fusion via Optimal Transport*, NeurIPS 2020, has one permutation after the other, as
        here; Git Re-Basin, appendix A.7, compares it with weight matching.
    """
    problem = Problem(spec, params_a, params_b, kernel)
    blocks = find_blocks(spec, problem.cells)
    layers: list[list[str]] = []
    for name in dict.fromkeys(cell.tensor for cell in problem.cells):
        if len(spec.shapes[name]) == 1 and layers:
            layers[-1].append(name)
        else:
            layers.append([name])
    settled: set[str] = set()
    for layer in layers:
        cells = [cell for cell in problem.cells if cell.tensor in layer]
        new = {factor.name for factor in spec.free if any(factor.name in cell.names for cell in cells)} - settled
        for block in blocks:
            for active in block.rounds:
                if active & new:
                    problem.step(block, active & new, [cell for cell in cells if active & new & set(cell.names)])
        settled |= new
    return problem.permutation()
