"""Weight matching's options, and what holds whatever they are."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_state, specs
from test_weight_matching import KERNELS, by_hand, check_history, inner_product
from torch import Tensor

from autoperm import PermutationSpec, weight_matching
from autoperm.errors import AutopermError, SpecError
from autoperm.matching import blocks
from autoperm.matching.problem import Problem, Task

Trace = Callable[[str], Traced]
State = Mapping[str, Tensor]
ORDERS = ("random", "forward", "backward", "gain")

LAYERS = by_hand(
    {"0": ("p _", (6, 3)), "1": ("q p", (7, 6)), "2": ("r q", (5, 7)), "3": ("s r", (6, 5)), "4": ("_ s", (2, 6))}, {}
)
RECURRENT = by_hand({"in": ("h _", (6, 2)), "loop": ("h h", (6, 6)), "out": ("_ h", (2, 6))}, {})
GROUPED = by_hand(
    {"in": ("(g=3 i=4) _", (12, 2)), "w": ("g o i", (3, 5, 4)), "out": ("_ (g o)", (2, 15))}, {"i": ["g"], "o": ["g"]}
)
HEADS = by_hand({"w": ("(h=3 d=4) _", (12, 5)), "v": ("_ (h d)", (5, 12)), "s": ("h", (3,))}, {"d": ["h"]})


def pair(spec: PermutationSpec, seed: int = 0) -> tuple[State, State]:
    return random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)


# --- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spec", [LAYERS, RECURRENT, GROUPED, HEADS])
def test_every_order_ends_where_no_block_has_anything_to_gain(spec: PermutationSpec, order: str) -> None:
    for seed, start in itertools.product(range(3), ("boundary", spec.random(9))):
        a, b = pair(spec, seed)
        found = check_history(spec, a, b, order=order, seed=seed, start=start)
        for again in ORDERS:
            match = weight_matching(spec, a, b, kernel="linear", order=again, seed=seed + 1, start=found)
            assert match.permutation == found
            assert match.converged
            assert match.sweeps == 1


@pytest.mark.parametrize("order", ORDERS)
def test_only_the_random_order_depends_on_the_seed(order: str) -> None:
    a, b = pair(LAYERS)
    matches = [weight_matching(LAYERS, a, b, order=order, seed=s, start=LAYERS.identity()) for s in range(6)]
    assert (len({match.objective for match in matches}) > 1) == (order == "random")


def test_blocks_are_visited_as_the_order_says(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[str] = []
    task = Problem.task

    def spied(self: Problem, active: frozenset[str], cells: Any = None) -> Task:
        visited.extend(active)
        return task(self, active, cells)

    monkeypatch.setattr(Problem, "task", spied)
    a, b = pair(LAYERS)
    for order, first in (("forward", "pqrs"), ("backward", "srqp")):
        visited.clear()
        weight_matching(LAYERS, a, b, order=order, start=LAYERS.identity(), max_sweeps=1)
        # Blocks that share no parameter may be exchanged: what counts is the order of neighbours.
        assert all(
            (visited.index(i) < visited.index(j)) == (first.index(i) < first.index(j))
            for i, j in itertools.pairwise("pqrs")
        )


def test_an_unknown_order_lists_those_there_are() -> None:
    with pytest.raises(AutopermError, match="no order 'best'; choose 'random' or 'forward' or 'backward' or 'gain'"):
        weight_matching(LAYERS, *pair(LAYERS), order="best")


# --- when it stops ------------------------------------------------------------------------------------------------


def test_a_tolerance_stops_early() -> None:
    spec = by_hand({"0": ("p _", (20, 3)), "1": ("q p", (20, 20)), "2": ("q r", (20, 20)), "3": ("_ r", (3, 20))}, {})
    a, b = pair(spec)
    options: dict[str, Any] = {"start": spec.identity(), "order": "forward", "kernel": "linear"}
    whole = weight_matching(spec, a, b, **options)
    assert whole.converged
    assert whole.sweeps > 2
    early = weight_matching(spec, a, b, tolerance=1e9, **options)
    assert early.sweeps == 1
    assert early.converged
    assert early.objective == whole.objective[: len(early.objective)]
    limited = weight_matching(spec, a, b, max_sweeps=1, **options)
    assert not limited.converged
    assert early == replace(limited, converged=True)
    assert whole == weight_matching(spec, a, b, tolerance=1e-12, **options)
    check_history(spec, a, b, tolerance=0.05, start=spec.identity())


@pytest.mark.parametrize("start", ["boundary", "identity", "random"])
def test_no_sweeps_leave_the_start(start: str) -> None:
    a, b = pair(LAYERS)
    where: Any = {"boundary": "boundary", "identity": LAYERS.identity(), "random": LAYERS.random(3)}[start]
    match = weight_matching(LAYERS, a, b, start=where, max_sweeps=0)
    assert (match.sweeps, match.converged, len(match.objective)) == (0, False, 1)
    if start != "boundary":
        assert match.permutation == where
    whole = weight_matching(LAYERS, a, b, start=match.permutation)
    assert whole == weight_matching(LAYERS, a, b, start=where)


# --- exclude ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["boundary", "identity"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_excluded_has_no_say(kernel: str, start: str) -> None:
    spec = by_hand({"0": ("p _", (9, 3)), "0.bias": ("p", (9,)), "1": ("q p", (8, 9)), "2": ("_ q", (4, 8))}, {})
    a, b = pair(spec)
    options: dict[str, Any] = {"kernel": kernel, "start": spec.identity() if start == "identity" else start}
    names, exclude = ("0", "0.bias"), ("*.bias", "0")
    other = {name: random_state(spec, 7)[name] if name in names else tensor for name, tensor in b.items()}
    first, second = (weight_matching(spec, a, state, exclude=exclude, **options) for state in (b, other))
    assert first == second
    assert first != weight_matching(spec, a, b, **options)
    moved = first.permutation.apply(b)
    scale = {name: (a[name] * 0 if name in names else a[name]) for name in a}  # only what counts
    value = inner_product(spec, scale, moved, kernel)
    assert first.objective[-1] == pytest.approx(value, rel=1e-9)


def test_each_name_of_a_tied_parameter_excludes_it(traced: Trace) -> None:
    spec = traced("tied_embedding").spec
    a, b = pair(spec)
    (alias,) = spec.tied
    name = spec.tied[alias]
    by_name, by_alias = (weight_matching(spec, a, b, exclude=[pattern]) for pattern in (name, alias))
    assert by_name == by_alias
    assert by_name != weight_matching(spec, a, b)


def test_what_is_excluded_must_be_there() -> None:
    with pytest.raises(SpecError, match=r"no parameter is called '\*\.gamma'; the first are \['0', '1'"):
        weight_matching(LAYERS, *pair(LAYERS), exclude=["4", "*.gamma"])


def test_without_any_say_nothing_moves() -> None:
    match = weight_matching(LAYERS, *pair(LAYERS), exclude=["*"])
    assert match.permutation.is_identity
    assert (match.objective, match.converged) == ((0.0,), True)


# --- keep ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["boundary", "random"])
def test_groups_that_are_kept_stay(start: str) -> None:
    a, b = pair(LAYERS)
    where: Any = LAYERS.random(4) if start == "random" else start
    stays = where if start == "random" else LAYERS.identity()
    found = check_history(LAYERS, a, b, keep=["q", "s"], start=where)
    assert all(torch.equal(found[name], stays[name]) for name in "qs")
    assert all(not torch.equal(found[name], stays[name]) for name in "pr")
    assert weight_matching(LAYERS, a, b, keep=list("pqrs"), start=where).permutation == stays


def test_a_group_that_is_kept_keeps_what_varies_over_it() -> None:
    start = HEADS.random(2)
    assert weight_matching(HEADS, *pair(HEADS), keep=["h"], start=start).permutation == start


def test_growing_starts_from_groups_that_are_kept_too() -> None:
    """Their neighbours can be told from them alone: the pinned axes say nothing here."""
    spec = by_hand({"0": ("p _", (24, 1)), "1": ("q p", (24, 24)), "2": ("r q", (24, 24)), "3": ("_ r", (1, 24))}, {})
    a, noise = pair(spec)
    planted = spec.random(0)
    kept = type(planted)(spec, {name: planted[name] for name in "qr"})
    b = kept.apply({name: a[name] + 0.5 * noise[name] for name in a})
    b = {**b, "0": noise["0"], "3": noise["3"]}
    found = weight_matching(spec, a, b, keep=["p"], max_sweeps=0).permutation
    assert found.compose(kept) == spec.identity()


def test_a_group_to_keep_must_be_there() -> None:
    with pytest.raises(AutopermError, match=r"keep names \['t'\], but the groups are \['p', 'q', 'r', 's'\]"):
        weight_matching(LAYERS, *pair(LAYERS), keep=["p", "t"])


# --- executor -----------------------------------------------------------------------------------------------------


class LastFirst(Executor):
    """Runs what is submitted later sooner, as workers may."""

    def __init__(self) -> None:
        self.widest = 0

    def map(self, fn: Callable[..., Any], *iterables: Any, **options: Any) -> Any:
        calls = list(zip(*iterables, strict=True))
        self.widest = max(self.widest, len(calls))
        return reversed([fn(*call) for call in reversed(calls)])

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise NotImplementedError


class Sent(LastFirst):
    """Sends all that it calls through a pickle."""

    def __init__(self, there: Executor) -> None:
        super().__init__()
        self.there = there

    def map(self, fn: Callable[..., Any], *iterables: Any, **options: Any) -> Any:
        calls = [pickle.dumps((fn, call)) for call in zip(*iterables, strict=True)]
        return self.there.map(_called, calls)


def _called(sent: bytes) -> Any:
    function, arguments = pickle.loads(sent)
    return function(*arguments)


@given(specs(), st.integers(0, 3), st.sampled_from(ORDERS), st.sampled_from(KERNELS))
def test_the_result_does_not_depend_on_the_workers(spec: PermutationSpec, seed: int, order: str, kernel: str) -> None:
    a, b = pair(spec, seed)
    options: dict[str, Any] = {"seed": seed, "order": order, "kernel": kernel, "start": spec.random(seed)}
    alone = weight_matching(spec, a, b, **options)
    assert alone == weight_matching(spec, a, b, executor=LastFirst(), **options)
    with ThreadPoolExecutor(2) as threads:
        assert alone == weight_matching(spec, a, b, executor=threads, **options)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("name", ["mlp", "transformer_pre"])
def test_threads_solve_blocks_at_the_same_time(name: str, workers: int, traced: Trace) -> None:
    spec = traced(name).spec
    a, b = pair(spec)
    for start in ("boundary", spec.identity()):
        alone = weight_matching(spec, a, b, start=start)
        with ThreadPoolExecutor(workers) as threads:
            assert alone == weight_matching(spec, a, b, start=start, executor=threads)


def test_blocks_that_share_no_parameter_are_handed_over_together() -> None:
    executor = LastFirst()
    weight_matching(LAYERS, *pair(LAYERS), executor=executor, start=LAYERS.identity())
    assert executor.widest >= 2


def test_tasks_can_be_sent_to_another_process() -> None:
    """With copies of what they need, and from where torch has another number of threads."""
    a, b = pair(RECURRENT)
    alone = weight_matching(RECURRENT, a, b, start=RECURRENT.identity())
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads + 1,)) as elsewhere:
            assert alone == weight_matching(RECURRENT, a, b, start=RECURRENT.identity(), executor=Sent(elsewhere))
    finally:
        torch.set_num_threads(threads)


# --- interruption -------------------------------------------------------------------------------------------------


def interrupted(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """Raise KeyboardInterrupt once, instead of the call that follows so many."""
    numbers = itertools.count()

    def call(*args: Any) -> Any:
        if next(numbers) == calls:
            raise KeyboardInterrupt
        return function(*args)

    return call


@pytest.mark.parametrize(("owner", "method"), [(Task, "solve"), (Problem, "move")])
@given(spec=specs(), seed=st.integers(0, 3), calls=st.integers(0, 12), boundary=st.booleans())
def test_an_interruption_returns_what_was_found_until_then(
    owner: type, method: str, spec: PermutationSpec, seed: int, calls: int, boundary: bool
) -> None:
    a, b = pair(spec, seed)
    start: Any = "boundary" if boundary else spec.identity()
    whole = weight_matching(spec, a, b, kernel="linear", seed=seed, start=start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, interrupted(getattr(owner, method), calls))
        match = weight_matching(spec, a, b, kernel="linear", seed=seed, start=start)
    value = inner_product(spec, a, match.permutation.apply(b))
    assert match.objective[-1] == pytest.approx(value, abs=1e-9)
    assert value >= inner_product(spec, a, b) - 1e-9
    assert match.interrupted or match == whole
    assert not (match.interrupted and match.converged)


def test_a_quadratic_step_is_taken_back_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objective is computed after the move."""
    a, b = pair(RECURRENT)
    objective = Problem.objective

    def look(self: Problem, names: Any = None) -> float:
        if names is not None and not self.permutation().is_identity:
            raise KeyboardInterrupt
        return objective(self, names)

    monkeypatch.setattr(Problem, "objective", look)
    match = weight_matching(RECURRENT, a, b, kernel="linear", start=RECURRENT.identity())
    assert match.interrupted
    assert match.permutation.is_identity
    assert match.objective == (pytest.approx(inner_product(RECURRENT, a, b)),)


# --- large blocks -------------------------------------------------------------------------------------------------


@given(specs(), st.integers(0, 3), st.integers(1, 40))
def test_blocks_that_are_too_large_are_solved_in_turns(spec: PermutationSpec, seed: int, affordable: int) -> None:
    a, b = pair(spec, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_AFFORDABLE", affordable)
        for start in ("boundary", spec.random(seed)):
            found = check_history(spec, a, b, seed=seed, start=start)
            match = weight_matching(spec, a, b, kernel="linear", seed=seed + 1, start=found)
            assert match.permutation == found
    torch.testing.assert_close(dict(found.inverse().apply(found.apply(b))), dict(b), rtol=0, atol=0)


@pytest.mark.parametrize(("affordable", "alternating"), [(3 * 4**2, ("h",)), ((3 * 4) ** 2, ())])
def test_a_block_that_is_solved_in_turns_is_named(
    affordable: int, alternating: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_AFFORDABLE", affordable)
    a, b = pair(HEADS)
    assert weight_matching(HEADS, a, b).alternating == alternating
    whole = weight_matching(HEADS, a, HEADS.random(0).apply(a), kernel="linear")
    norm = sum(float(tensor.square().sum()) for tensor in a.values())
    if not alternating:
        assert whole.objective[-1] == pytest.approx(norm)


# --- dtypes and devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [LAYERS, RECURRENT, GROUPED, HEADS])
def test_the_history_is_right_in_lower_precision(spec: PermutationSpec, dtype: torch.dtype) -> None:
    a, b = ({name: tensor.to(dtype) for name, tensor in state.items()} for state in pair(spec))
    match = weight_matching(spec, a, b, kernel="linear", start=spec.identity())
    assert match.converged
    assert all(later > earlier for earlier, later in itertools.pairwise(match.objective))
    moved = {name: tensor.double() for name, tensor in match.permutation.apply(b).items()}
    value = inner_product(spec, {name: tensor.double() for name, tensor in a.items()}, moved)
    scale = sum(float(a[name].double().norm() * moved[name].norm()) for name in a)
    assert match.objective[-1] == pytest.approx(value, abs=1e-6 * scale)


def test_what_is_worked_on_is_where_the_weights_are() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = ({name: tensor.to(device) for name, tensor in state.items()} for state in pair(HEADS))
    match = weight_matching(HEADS, a, b)
    assert all(index.device.type == "cpu" for index in match.permutation.indices.values())
    assert match.permutation == weight_matching(HEADS, *pair(HEADS)).permutation
    assert {tensor.device.type for tensor in match.permutation.apply(b).values()} == {device.type}
