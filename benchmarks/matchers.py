"""The matchers that the benchmarks measure: add a line to have one more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

import autoperm
from autoperm import (
    Matcher,
    ModelMatcher,
    Permutation,
    PermutationSpec,
    SimulatedAnnealing,
    Sinkhorn,
    StraightThrough,
)
from autoperm.evaluate import Loss
from autoperm.matchers import bind, parameters


class Data(NamedTuple):
    """What a matcher may look at: batches of inputs and targets, and the loss; and by how much to shorten long ones."""

    batches: Iterable[Any]
    loss: Loss
    shorten: int = 1


Make = Callable[[Data], Matcher | ModelMatcher]


def always(matcher: Matcher) -> Make:
    """Take a matcher that needs no data."""
    return lambda data: matcher


def algorithm_1(spec: PermutationSpec, *params: Any) -> Any:
    """Descend as the paper does, on the inner product of all weights, from the identity."""
    return autoperm.weight_matching(spec, *params, kernel="linear", start=spec.identity())


FREE: dict[str, Make] = {
    "naive": always(autoperm.identity_matching),
    "greedy": always(autoperm.greedy_matching),
    "weight, Algorithm 1": always(algorithm_1),
    "weight, linear": always(partial(autoperm.weight_matching, kernel="linear")),
    "weight": always(autoperm.weight_matching),
    "graduated": always(autoperm.graduated_assignment),
    "frank-wolfe": always(autoperm.frank_wolfe),
}
"""They see the weights alone."""

ACTIVATIONS: dict[str, Make] = {
    "activation": lambda data: autoperm.ActivationMatching(data.batches),
}
"""They run the models."""

LONG: dict[str, Make] = {
    "annealing": lambda data: SimulatedAnnealing(data.batches, data.loss, steps=1000 // data.shorten),
    "sinkhorn": lambda data: Sinkhorn(data.batches, data.loss, objective="random", steps=200 // data.shorten),
    "straight-through": lambda data: StraightThrough(data.batches, data.loss, steps=500 // data.shorten),
}
"""They take many steps on the loss between the models, by default as many as here."""


def run(matcher: Matcher | ModelMatcher, spec: PermutationSpec, a: nn.Module, b: nn.Module) -> Permutation:
    """Match two models."""
    found = bind(matcher, a, b)(spec, parameters(a), parameters(b))
    return found if isinstance(found, Permutation) else found.permutation
