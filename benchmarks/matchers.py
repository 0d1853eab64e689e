"""The matchers that the benchmarks measure: add a line to have one more.

A matcher that this version of autoperm does not have is left out, with a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

import autoperm
from autoperm import Permutation, PermutationSpec
from autoperm.errors import AutopermError
from autoperm.evaluate import Loss
from autoperm.matching import Matcher, get_matcher


class Data(NamedTuple):
    """What a matcher may look at: batches of inputs and targets, and the loss."""

    batches: Iterable[Any]
    loss: Loss


class MissingError(Exception):
    """There is no such matcher here."""


Make = Callable[[Data], Matcher]


def naive(spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /) -> Permutation:
    """Leave model B as it is."""
    return spec.identity()


def named(name: str, **options: Any) -> Make:
    """Take a matcher that ``align`` knows by its name."""

    def make(data: Data) -> Matcher:
        try:
            return partial(get_matcher(name), **options) if options else get_matcher(name)
        except AutopermError as error:
            raise MissingError(str(error)) from error

    return make


def algorithm_1(data: Data) -> Matcher:
    """Descend as the paper does, on the inner product of all weights, from the identity."""
    return lambda spec, a, b, /: partial(get_matcher("weight"), kernel="linear", start=spec.identity())(spec, a, b)


def built(name: str, build: Callable[[Any, Data], Matcher]) -> Make:
    """Build a matcher that is a class."""

    def make(data: Data) -> Matcher:
        for home in (autoperm, autoperm.matching):
            if hasattr(home, name):
                return build(getattr(home, name), data)
        raise MissingError(f"autoperm has no {name}")

    return make


FREE: dict[str, Make] = {
    "naive": lambda data: naive,
    "greedy": named("greedy"),
    "weight, Algorithm 1": algorithm_1,
    "weight, linear": named("weight", kernel="linear"),
    "weight": named("weight"),
    "frank-wolfe": named("frank-wolfe"),
}
"""They see the weights alone."""

ACTIVATIONS: dict[str, Make] = {
    "activation": built("ActivationMatching", lambda kind, data: kind(data.batches)),
}
"""They run the models."""

LONG: dict[str, Make] = {
    "annealing": built("SimulatedAnnealing", lambda kind, data: kind()),
    "sinkhorn": built("Sinkhorn", lambda kind, data: kind()),
    "sinkhorn, midpoint": built("Sinkhorn", lambda kind, data: kind(data.batches, data.loss, objective="midpoint")),
    "straight-through": built("StraightThrough", lambda kind, data: kind(data.batches, data.loss)),
}
"""They take many steps: on the weights, the first two; else on the loss."""


def run(matcher: Matcher, spec: PermutationSpec, a: nn.Module, b: nn.Module) -> Permutation:
    """Match two models."""
    if hasattr(matcher, "bind"):
        matcher = matcher.bind(a, b)
    params = [dict(model.named_parameters(remove_duplicate=False)) for model in (a, b)]
    found = matcher(spec, *({name: tensor.detach() for name, tensor in each.items()} for each in params))
    return found if isinstance(found, Permutation) else found.permutation
