r"""Graduated assignment: soft permutations that harden slowly.

.. math:: P_f \leftarrow \operatorname{Sinkhorn}\left(\beta \, G_f / \sigma(G_f)\right)

for all factors f at once, from the middle of the polytope, where :math:`G_f` is the gradient of the weight matching
objective with respect to the factor's matrix, the Gram matrix of A's and B's units with the other axes mixed as they
are now. Its entries' standard deviation :math:`\sigma` gives the sharpness :math:`\beta` a meaning that does not depend
on the weights. The sharpness grows step by step; in the end the matrices are rounded, and coordinate descent finishes.

Frank-Wolfe commits itself: each step goes to a corner, or a good part of the way. Here a unit that looks like several
stays spread over those until its neighbours tell them apart. Where a step of fixed sharpness changes nothing, the
objective plus a multiple of the matrices' entropy, :math:`\sigma(G_f) / \beta` for each, is stationary.

Reference: Gold and Rangarajan, *A graduated assignment algorithm for graph matching*, IEEE Transactions on Pattern
Analysis and Machine Intelligence, 1996; there for one matrix on both sides of two graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..spec import PermutationSpec
from .frank_wolfe import Ascent, Relaxation
from .match import Match
from .problem import Kernel
from .soft import Soft, harden, normalize, soften, uniform
from .weight import weight_matching

_SHARPNESS = (0.5, 30.0)
"""The first and the last: at 0.5 all is nearly uniform, at 30 a lead of a tenth of a standard deviation decides."""


def graduated_assignment(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "cosine",
    seed: int = 0,
    steps: int = 20,
    iterations: int = 10,
    max_sweeps: int = 100,
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by graduated assignment, rounding, and coordinate descent.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        seed: of the order in which coordinate descent visits the blocks.
        steps: in how many steps the sharpness grows.
        iterations: how often rows and columns are normalised in each step.
        max_sweeps: of the coordinate descent that follows the rounding.
        progress: show a progress bar.

    Returns:
        The permutation of B. The objective's history is that of permutations, from the identity on; soft ones do not
        count. The sweeps are the steps and those of coordinate descent.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = graduated_assignment(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    relaxation = Relaxation(spec, [params_a, params_b], kernel)
    before = relaxation.value([soften(spec.identity(), relaxation.like)])
    with tqdm(total=steps, desc="graduated assignment", disable=not progress, leave=False) as bar:
        end = anneal(relaxation, [uniform(spec, relaxation.like)], steps=steps, iterations=iterations, bar=bar)
    rounded, sweeps = harden(spec, end.softs[0]), 0 if end.interrupted else max_sweeps
    found = weight_matching(spec, params_a, params_b, kernel=kernel, seed=seed, start=rounded, max_sweeps=sweeps)
    interrupted = end.interrupted or found.interrupted
    converged, done = found.converged and not interrupted, end.steps + found.sweeps
    if found.objective[-1] < before:
        return Match(spec.identity(), (before,), done, converged=False, interrupted=interrupted)
    history = (before, *(value for value in found.objective if value > before))
    return replace(found, objective=history, sweeps=done, converged=converged, interrupted=interrupted)


def anneal(relaxation: Relaxation, softs: list[Soft], *, steps: int, iterations: int, bar: tqdm[None]) -> Ascent:
    """Sharpen soft permutations step by step."""
    for step, sharpness in enumerate(np.geomspace(*_SHARPNESS, steps)):
        try:
            _, gradients = relaxation.gradient(softs)
            softs = [_sharpen(gradient, float(sharpness), iterations) for gradient in gradients]
        except KeyboardInterrupt:
            return Ascent(softs, step, converged=False, interrupted=True)
        bar.update()
    return Ascent(softs, steps, converged=True)


def _sharpen(gradient: Soft, sharpness: float, iterations: int) -> Soft:
    """Return doubly stochastic matrices that favour large entries of the gradient."""
    found = {}
    for name, matrix in gradient.items():
        spread = matrix.std((-1, -2), correction=0, keepdim=True)
        scores = (matrix - matrix.mean((-1, -2), keepdim=True)) / spread.clamp_min(torch.finfo(matrix.dtype).tiny)
        found[name] = normalize(sharpness * scores, iterations)
    return found
