"""Property tests of your own models. Needs hypothesis: ``pip install "autoperm[testing]"``.

Strategies draw group elements, inputs and weights; two assertions say that a specification is right, and that it lacks
nothing. What is drawn shrinks to the identity, to the example, and to the model's own weights: a failing test ends with
the least that breaks it.

>>> from hypothesis import given
>>> from autoperm import discover
>>> model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 3)
>>> spec = discover(model, x)
>>> @given(permutations(spec), inputs((x,)))
... def test_permuting_hidden_units_changes_nothing(permutation, x):
...     assert_function_preserved(model, spec, x, permutation=permutation)
>>> test_permuting_hidden_units_changes_nothing()
>>> assert_spec_complete(model, spec, (x,))
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copy_model
from .equivalence import Reference, arguments, compare, verify
from .errors import EquivalenceError
from .matching.exhaustive import elements as elements
from .permutation import Permutation
from .perturb import randomize_
from .probe import probe
from .spec import Factor, PermutationSpec
from .state import tensors

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ImportError('testing needs hypothesis; install it with: pip install "autoperm[testing]"') from error

_SMALL = 32
"""Factors of no more units, copies counted, are drawn unit by unit; larger ones from a seed and a few exchanges."""

_SEEDS = st.none() | st.integers(0, 2**32 - 1)
"""Shrinks to none: to what is there already."""


# --- strategies


def permutations(spec: PermutationSpec) -> st.SearchStrategy[Permutation]:
    """Draw group elements: of every factor any permutation, dense ones and ones that move a few units.

    They shrink to the identity.

    Example:
        >>> from hypothesis import given
        >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
        >>> @given(permutations(spec))
        ... def test_inverse(p):
        ...     assert p.compose(p.inverse()).is_identity
        >>> test_inverse()
    """
    rows = {factor.name: _rows(spec, factor) for factor in spec.free}
    return st.fixed_dictionaries(rows).map(lambda indices: Permutation(spec, indices))


def _rows(spec: PermutationSpec, factor: Factor) -> st.SearchStrategy[Tensor]:
    """Draw the index array of a factor."""
    shape = (*(spec.factors[name].size for name in factor.over), factor.size)
    copies, size = spec.copies(factor), factor.size
    if copies * size <= _SMALL:
        rows = [st.permutations(range(size)) for _ in range(copies)]
        return st.tuples(*rows).map(lambda drawn: torch.tensor(drawn).reshape(shape))
    unit = st.integers(0, size - 1)
    exchanges = st.lists(st.tuples(st.integers(0, copies - 1), unit, unit), max_size=4)

    def build(drawn: tuple[int | None, list[tuple[int, int, int]]]) -> Tensor:
        seed, pairs = drawn
        index = torch.arange(size).repeat(copies, 1)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            index = torch.rand(copies, size, generator=generator, dtype=torch.float64).argsort(-1)
        for copy, i, j in pairs:
            index[copy, [i, j]] = index[copy, [j, i]]
        return index.reshape(shape)

    return st.tuples(_SEEDS, exchanges).map(build)


def inputs(example: Sequence[Any], *, high: int | None = None) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw inputs like an example: tensors of the same shapes and dtypes, everything else as it is.

    Values lie between the smallest and the largest of the example's tensor (one to both sides, where all floating-point
    values are equal), and what is not finite stays where it is. They shrink to the example.

    Args:
        example: positional inputs; tensors may be inside lists, tuples and dictionaries.
        high: draw integers from 0 to below this, as from a vocabulary.

    Example:
        >>> from hypothesis import given
        >>> @given(inputs((torch.zeros(2, 5, dtype=torch.int64),), high=11))
        ... def test_tokens(inputs):
        ...     assert inputs[0].shape == (2, 5) and int(inputs[0].max()) < 11
        >>> test_tokens()
    """
    return st.tuples(*(_like(value, high) for value in example))


def _like(value: Any, high: int | None) -> st.SearchStrategy[Any]:
    if isinstance(value, Tensor):
        tensor = value.detach()
        return _SEEDS.map(lambda seed: tensor.clone() if seed is None else _random_like(tensor, high, seed))
    if isinstance(value, Mapping):
        return st.fixed_dictionaries({key: _like(item, high) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        kind = type(value)
        return st.tuples(*(_like(item, high) for item in value)).map(kind)
    return st.just(value)


def _random_like(tensor: Tensor, high: int | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if tensor.numel() == 0 or tensor.is_complex():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return noise.to(tensor.device)
    if not tensor.is_floating_point():
        low, top = (0, high) if high is not None and tensor.dtype != torch.bool else _span(tensor.to(torch.int64))
        return torch.randint(int(low), int(top), tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
    finite = tensor.isfinite()
    if not finite.any():
        return tensor.clone()
    least, most = float(tensor[finite].min()), float(tensor[finite].max())
    if least == most:
        least, most = least - 1, most + 1
    drawn = least + (most - least) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return torch.where(finite, drawn.to(tensor.device, tensor.dtype), tensor)


def _span(tensor: Tensor) -> tuple[int, int]:
    return int(tensor.min()), int(tensor.max()) + 1


def weights(model: nn.Module) -> st.SearchStrategy[dict[str, Tensor]]:
    """Draw state dicts of a model: random parameters of sensible scales, positive where the model's own are.

    They shrink to the model's own weights. See ``randomize`` of :func:`autoperm.probe`.

    Example:
        >>> from hypothesis import given
        >>> model = nn.Linear(2, 3)
        >>> @given(weights(model))
        ... def test_shapes(state):
        ...     assert state["weight"].shape == (3, 2)
        >>> test_shapes()
    """

    def build(seed: int | None) -> dict[str, Tensor]:
        copied = copy_model(model)
        if seed is not None:
            randomize_(copied, torch.Generator().manual_seed(seed))
        return tensors(copied)

    return _SEEDS.map(build)


# --- assertions


def assert_function_preserved(
    model: nn.Module,
    spec: PermutationSpec,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    permutation: Permutation | None = None,
    draws: int = 2,
    tolerance: float = 1e-6,
    generator: torch.Generator | int | None = 0,
) -> None:
    """Assert that permuting a model does not change what it computes, in float64.

    Args:
        model: a model that the specification is for; it is not changed.
        spec: the specification.
        inputs: positional inputs, or a dictionary of inputs by name; floating-point ones are cast to float64.
        permutation: one group element; if left out, one that moves every unit, and random ones.
        draws: how many random ones.
        tolerance: largest allowed difference, relative to the largest output.
        generator: a generator or seed for the random ones.

    Raises:
        AssertionError: saying by how much the outputs differ, and which factors are wrong by themselves.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> wrong = PermutationSpec.from_patterns({"0.weight": "h _", "2.weight": "_ h"}, model)
        >>> assert_function_preserved(model, wrong, (torch.randn(4, 3),))
        Traceback (most recent call last):
        AssertionError: a group element changes the outputs by ... of their size (allowed: 1e-06).
          Factors that do so alone: h on 0.weight axis 0, 2.weight axis 1. ...
    """
    try:
        if permutation is None:
            verify(spec, model, inputs, draws=draws, tolerance=tolerance, generator=generator)
        else:
            compare(Reference.of(model, *arguments(inputs), tolerance), [permutation])
    except EquivalenceError as error:
        raise AssertionError(f"{error}{_moves(permutation) if permutation is not None else ''}") from None


def assert_spec_complete(
    model: nn.Module,
    spec: PermutationSpec,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    allow: Collection[str] = (),
    randomize: bool = True,
    generator: torch.Generator | int | None = 0,
) -> None:
    """Assert that a specification lacks no symmetry that :func:`autoperm.probe` can see.

    Args:
        model: a model that the specification is for; it is not changed.
        spec: the specification.
        inputs: positional inputs, or a dictionary of inputs by name; what they do not exercise is not probed.
        allow: axes that are known to be missed, as ``"embedding.weight[0]"``.
        randomize: draw the weights at random.
        generator: a CPU generator, or a seed for one.

    Raises:
        AssertionError: listing what is missed.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> little = PermutationSpec.from_patterns({"0.weight": "h! _", "0.bias": "h!", "2.weight": "_ h!"}, model)
        >>> assert_spec_complete(model, little, (torch.randn(4, 3),))
        Traceback (most recent call last):
        AssertionError: the specification lacks symmetries
        ...
          0.weight[0], 0.bias[0], 2.weight[1]
            pinned: so the specification says
        ...
    """
    found = probe(model, spec, inputs, randomize=randomize, generator=generator)
    if any(f"{tensor}[{axis}]" not in allow for missed in found.missed for tensor, axis in missed.axes):
        raise AssertionError(f"the specification lacks symmetries\n{found}")


def _moves(permutation: Permutation) -> str:
    """Say which units a permutation moves."""
    lines = []
    for name, index in permutation.indices.items():
        rows = index.reshape(-1, index.shape[-1])
        moved = rows != torch.arange(rows.shape[-1])
        places = [f"{place} from {int(row[place])}" for row, here in zip(rows, moved, strict=True) for place in
                  here.nonzero().flatten().tolist()]  # fmt: skip
        shown = ", ".join(places[:6]) + (", ..." if len(places) > 6 else "")
        lines.append(f"\n  It moves {len(places)} of {rows.numel()} units of {name}: {shown}")
    return "".join(lines)


# --- small groups and random tensors


def random_state(spec: PermutationSpec, seed: int = 0) -> dict[str, Tensor]:
    """Return random tensors that fit a specification, in float64; tied names share one.

    Example:
        >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
        >>> random_state(spec)["weight"].shape
        torch.Size([3, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in spec.shapes.items()}
    return {name: state[spec.tied.get(name, name)] for name in state}
