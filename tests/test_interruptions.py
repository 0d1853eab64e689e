"""Ctrl-C at any moment: a matcher stops and returns a permutation, the best that it has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import floats, randomize
from torch import nn
from torch.nn import functional as F

from autoperm import (
    ActivationMatching,
    ManyMatch,
    Match,
    MergeMany,
    PermutationSpec,
    SimulatedAnnealing,
    Sinkhorn,
    StraightThrough,
    ToReference,
    Universe,
    frank_wolfe,
    graduated_assignment,
    weight_matching,
)
from autoperm.activations import Moments
from autoperm.matchers import parameters
from autoperm.matching.frank_wolfe import Relaxation
from autoperm.matching.nested import Nested
from autoperm.matching.path import Path
from autoperm.matching.problem import Task

SPEC = {"0.weight": "p _", "0.bias": "p", "2.weight": "q p", "2.bias": "q", "4.weight": "_ q"}


def net(seed: int) -> nn.Module:
    return randomize(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double(), seed
    )


A, B, C = map(net, range(3))
DATA = [(floats(20, 4)()[0], torch.zeros(20, 3, dtype=torch.float64))] * 3
Found = Match | ManyMatch

MATCHERS: dict[str, Any] = {
    "weight": weight_matching,
    "graduated": graduated_assignment,
    "frank-wolfe": frank_wolfe,
    "frank-wolfe, boundary": lambda *given: frank_wolfe(*given, start="boundary", restarts=1),
    "activation": ActivationMatching(DATA),
    "straight-through": StraightThrough(DATA, F.mse_loss, steps=3),
    "sinkhorn, l2": Sinkhorn(steps=3),
    "sinkhorn": Sinkhorn(DATA, F.mse_loss, objective="midpoint", steps=3),
    "annealing": SimulatedAnnealing(DATA, F.mse_loss, steps=3),
    "merge-many": MergeMany(),
    "reference": ToReference(),
    "universe": Universe(max_steps=5),
    "universe, boundary": Universe(method="graduated", start="boundary", max_steps=3),
}

PLACES = [
    *((Task, "solve"), (Nested, "solve"), (Path, "move"), (Path, "loss")),
    *((Relaxation, "gradient"), (Relaxation, "value"), (Moments, "add"), (Moments, "second")),
]


def run(matcher: Any) -> Found:
    spec = PermutationSpec.from_patterns(SPEC, A)
    if hasattr(matcher, "match_many"):
        many: ManyMatch = matcher.match_many(spec, [parameters(model) for model in (A, B, C)])
        return many
    bound: Callable[..., Match] = matcher.bind(A, B) if hasattr(matcher, "bind") else matcher
    return bound(spec, parameters(A), parameters(B))


def moments(count: int) -> Iterator[int]:
    """The first calls, one in the middle, and the last ones."""
    yield from sorted({0, 1, 2, count // 2, count - 2, count - 1} & set(range(count)))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
@pytest.mark.parametrize("name", MATCHERS)
def test_it_stops_and_returns_the_best_so_far(
    name: str, place: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, method = place
    original = getattr(owner, method)
    calls = itertools.count()
    stop = -1

    def counted(*args: Any, **options: Any) -> Any:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, method, counted)
    run(MATCHERS[name])
    count = next(calls)
    after = 0
    for stop in moments(count):
        calls = itertools.count()
        found = run(MATCHERS[name])
        assert found.interrupted, f"the interruption in call {stop} of {count} was forgotten"
        assert not found.converged
        assert all(later >= earlier for earlier, later in itertools.pairwise(found.objective))
        permutations = found.permutations if isinstance(found, ManyMatch) else (found.permutation,)
        for permutation in permutations:
            for index in permutation.indices.values():
                assert sorted(index.tolist()) == list(range(len(index)))
        after = max(after, next(calls) - stop - 1)
    assert after <= 3, f"{after} calls after the interruption"
