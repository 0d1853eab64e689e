r"""Weight matching: coordinate descent over blocks, Algorithm 1 of Git Re-Basin, for wreath products too.

.. math:: \max_\pi \sum_t w_t \langle A_t, \pi(B)_t \rangle

over tensors t. In the paper every :math:`w_t` is 1, kernel ``"linear"``. Then layers with large weights drown the
others, and so does BatchNorm's scale, which is large and nearly the same for all units. Kernel ``"cosine"`` takes
:math:`w_t = 1 / (|A_t| |B_t|)`, so that every tensor has the same say, but a thousandth of it if it has only one number
for each unit (biases, scales): those settle what the others leave open.

A **block** is a root factor with all that varies over it: attention heads, and the channels inside each head. One step
solves a block while the rest stands still. With no dependents that is one linear assignment on the Gram matrix, summed
over every parameter axis that carries the factor. With dependents it is nested: for each pair (i, j) of positions of
the root, the best inner assignment says what it is worth to put j in the place of i; one outer assignment on those
values then solves the whole block exactly.

Two cases are not linear in a block, and are never allowed to lower the objective. Dependents of one root that multiply
each other in one parameter (the channels into and out of a group of a grouped convolution) are solved in turns. And a
factor on two axes of one parameter (recurrent weights) makes its block quadratic: the step is taken against the other
axis as it stands, and kept only if the true objective rises.

Descent from the identity listens to neighbours that are still wrong, and ends in poor optima. So the descent starts
where it can know: units next to inputs, outputs and other pinned axes have weights that need no other permutation.
Blocks are solved one by one from that boundary inwards, each from the tensors whose other factors are settled, those
with the largest settled share first.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..errors import AutopermError
from ..permutation import Permutation
from ..spec import PermutationSpec
from .blocks import find_blocks
from .match import Match
from .problem import Kernel, Problem


def weight_matching(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "cosine",
    seed: int = 0,
    max_sweeps: int = 100,
    start: Permutation | Literal["boundary"] = "boundary",
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by coordinate descent.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        seed: of the random order in which blocks are visited, new for each sweep.
        max_sweeps: stop after so many, even if the last one still improved.
        start: the permutation to start from; ``"boundary"`` grows one from the pinned axes inwards. The paper starts
            from ``spec.identity()``.
        progress: show a progress bar.

    Returns:
        The permutation of B, with the history of the objective, which never falls.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = weight_matching(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    if kernel not in ("linear", "cosine"):
        raise AutopermError(f"there is no kernel {kernel!r}; choose 'linear' or 'cosine'")
    problem = Problem(spec, params_a, params_b, kernel, spec.identity() if start == "boundary" else start)
    rng = np.random.default_rng(seed)
    blocks = find_blocks(spec, problem.cells)
    if start == "boundary":
        problem.grow(blocks)
    history = [problem.objective()]
    converged = not blocks
    sweeps = 0
    bar = tqdm(total=max_sweeps * len(blocks), desc="weight matching", disable=not progress, leave=False)
    while not converged and sweeps < max_sweeps:
        sweeps += 1
        converged = True
        for number in rng.permutation(len(blocks)):
            for active in blocks[number].rounds:
                gain = problem.step(blocks[number], active, problem.cells)
                if gain > 0:
                    converged = False
                    history.append(history[-1] + gain)
            bar.update()
        bar.set_postfix(objective=f"{history[-1]:.6g}")
    bar.close()
    return Match(
        Permutation(spec, problem.indices),
        tuple(history),
        sweeps,
        converged,
        tuple(block.root for block in blocks if len(block.rounds) > 1),
    )
