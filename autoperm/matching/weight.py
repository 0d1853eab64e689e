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

Three cases are not solved at once, and are never allowed to lower the objective. Dependents of one root that multiply
each other in one parameter (the channels into and out of a group of a grouped convolution) are solved in turns. So are
root and dependents whose joint Gram matrix would not fit into memory. And a factor on two axes of one parameter
(recurrent weights) makes its block quadratic: the step is taken against the other axis as it stands, and kept only if
the true objective rises.

Descent from the identity listens to neighbours that are still wrong, and ends in poor optima. So the descent starts
where it can know: units next to inputs, outputs and other pinned axes have weights that need no other permutation.
Blocks are solved one by one from that boundary inwards, each from the tensors whose other factors are settled, those
with the largest settled share first.

A block is visited again only after one of its parameters has changed. Blocks that share no parameter can be solved at
the same time: any ``concurrent.futures.Executor`` takes them, with the same result as one after the other.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Literal, get_args

from torch import Tensor
from tqdm import tqdm

from ..errors import AutopermError
from ..permutation import Permutation
from ..spec import PermutationSpec
from .blocks import find_blocks
from .descent import Descent, Order
from .grow import grow
from .match import Match
from .problem import Kernel, Problem, check_option


def weight_matching(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "cosine",
    start: Permutation | Literal["boundary"] = "boundary",
    order: Order = "random",
    seed: int = 0,
    max_sweeps: int = 100,
    tolerance: float = 1e-4,
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    executor: Executor | None = None,
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by coordinate descent.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        start: the permutation to start from; ``"boundary"`` grows one from the pinned axes inwards. The paper starts
            from ``spec.identity()``.
        order: in which a sweep visits the blocks: ``"random"``, new for each sweep; as their first parameters stand in
            the model, ``"forward"`` or ``"backward"``; or those first that gained most when last visited (``"gain"``).
        seed: of the random order.
        max_sweeps: stop after so many, even if the last one still improved.
        tolerance: stop after a sweep that raised the objective by less than this share of it. At 0 the descent ends
            where no block has anything to gain.
        exclude: parameters that have no say, by name or pattern (``"*.bias"``). They are permuted with the others.
        keep: groups that stay as they start, by the names that the specification gives them.
        executor: solves blocks that share no parameter at the same time. The result does not depend on it.
        progress: show a progress bar.

    Returns:
        The permutation of B, with the history of the objective, which never falls. An interruption (control-C) ends
        the descent and returns what was found until then.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.
        AutopermError: for an unknown kernel, order, group or parameter.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = weight_matching(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    check_option("order", order, get_args(Order))
    unknown = set(keep) - {group.name for group in spec.groups}
    if unknown:
        raise AutopermError(f"keep names {sorted(unknown)}, but the groups are {[group.name for group in spec.groups]}")
    problem = Problem(spec, params_a, params_b, kernel, None if start == "boundary" else start, exclude)
    blocks = [block for block in find_blocks(spec, problem.cells) if block.root not in keep]
    descent = Descent(problem, blocks, order, seed, executor)
    interrupted = False
    if start == "boundary":
        try:
            grow(problem, blocks)
        except KeyboardInterrupt:
            interrupted = True
            problem = Problem(spec, params_a, params_b, kernel, problem.permutation(), exclude)

    def done(gained: float, objective: float) -> bool:
        return gained < tolerance * abs(objective) or not descent.pending()

    history = [problem.objective()]
    sweeps, gained = 0, float("inf")
    with tqdm(total=max_sweeps, desc="weight matching", disable=not progress, leave=False) as bar:
        try:
            while not interrupted and not done(gained, history[-1]) and sweeps < max_sweeps:
                sweeps += 1
                before = history[-1]
                for gain in descent.sweep():
                    history.append(history[-1] + gain)
                gained = history[-1] - before
                bar.update()
                bar.set_postfix(objective=f"{history[-1]:.6g}")
        except KeyboardInterrupt:
            interrupted = True
    return Match(
        problem.permutation(),
        tuple(history),
        sweeps,
        done(gained, history[-1]) and not interrupted,
        tuple(block.root for block in blocks if len(block.rounds) > 1),
        interrupted,
    )
