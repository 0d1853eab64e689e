"""The front door for more than two models: all of them moved into one basin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .align import compare
from .discover import infer
from .errors import ArchitectureError, MatcherError
from .evaluate import Loss
from .inputs import resolve_inputs
from .matchers import AnyManyMatcher, AnyMatcher, bind_many, get_many_matcher, parameters, unchanged
from .matching import ManyMatch
from .matching.match import course, name_of, permutation_of
from .permutation import Permutation
from .report import table
from .spec import PermutationSpec
from .state import check_finite, check_same_architecture, several, tensors
from .trace import trace


@dataclass(frozen=True)
class ManyAlignment:
    """Models aligned with each other.

    Attributes:
        models: new models; each computes what the model computes that was given in its place.
        spec: which axes could be permuted, and why others could not.
        permutations: what was done to each: ``permutations[i].apply(given[i])`` is ``models[i]``.
        match: how the permutations were found.
        errors: for each model the largest difference between the outputs of the given and the new one in float64,
            relative to the largest output; None if it was not checked.
    """

    models: tuple[nn.Module, ...] = field(repr=False)
    spec: PermutationSpec = field(repr=False)
    permutations: tuple[Permutation, ...] = field(repr=False)
    match: ManyMatch = field(repr=False)
    errors: tuple[float, ...] | None

    def __str__(self) -> str:
        """Return what was found and matched, and how much of each model moved."""
        spec = self.spec
        groups = f"{len(spec.groups)} group{'s' * (len(spec.groups) != 1)}"
        checked = "not checked"
        if self.errors is not None:
            checked = f"each model computes what it did, to {max(self.errors):.0e}"
        lines = [
            f"Alignment of {len(self.models)} models, {type(self.models[0]).__name__}",
            f"  found:   {groups}, 10^{spec.log10_order:.1f} permutations",
            f"  matched: {course(self.match)}",
            f"  checked: {checked}",
        ]
        rows = [["model", "units moved"]]
        units = sum(factor.size * spec.copies(factor) for factor in spec.free)
        for i, permutation in enumerate(self.permutations):
            places = {name: torch.arange(index.shape[-1]) for name, index in permutation.indices.items()}
            moved = sum(int((index != places[name]).sum()) for name, index in permutation.indices.items())
            rows.append([str(i), f"{moved / max(units, 1):.0%}"])
        return "\n".join(
            [*lines, "", table(rows if len(rows) < 30 else [*rows[:28], [f"... {len(rows) - 28} more", ""]])]
        )


def align_many(
    models: Sequence[nn.Module],
    *,
    example_inputs: Any = None,
    spec: PermutationSpec | None = None,
    matcher: str | AnyMatcher | AnyManyMatcher = "merge-many",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    check: bool = True,
    progress: bool = False,
) -> ManyAlignment:
    """Permute the units of several models so that all are in one order.

    Args:
        models: two or more models of the same architecture. They are not changed.
        example_inputs: a tensor, a tuple of positional inputs, or a dictionary of inputs by name. Common models need
            none.
        spec: which axes may be permuted, if it is known already; else it is discovered from the first model.
        matcher: ``"merge-many"``, in which each model fits the mean of the others; ``"universe"``, in which all are
            relaxed together; or ``"reference"``, in which each fits the first by weight matching. These need the
            weights alone. A name that :func:`autoperm.align` knows, with the data and loss that it needs, or a callable
            ``(spec, params_a, params_b) -> Permutation`` matches each to the first. Or an object with ``match_many``.
        data: batches ``(input, target)``, for a matcher that is named and needs them.
        loss: ``loss(output, target)``, the mean over the batch, for a matcher that is named and needs it.
        check: compare each aligned model with the given one on the example inputs.
        progress: show a progress bar, if the matcher is one that was named.

    Returns:
        The aligned models with all that was learnt on the way; print it.

    Raises:
        ArchitectureError: if there are fewer than two models, or their tensors differ in name, shape, dtype or device.
        WeightsError: if weights are NaN or infinite.
        TraceError: if the model cannot be traced, or no inputs are found.
        MatcherError: as for :func:`autoperm.align`.
        EquivalenceError: if an aligned model does not compute what the given one computes.

    Example:
        >>> models = [nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)) for _ in range(3)]
        >>> aligned = align_many(models)
        >>> x = torch.randn(5, 4)
        >>> for model, given in zip(aligned.models, models, strict=True):
        ...     torch.testing.assert_close(model(x), given(x))

    Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, Algorithm 3; Crisostomi et al., *C2M3:
    Cycle-Consistent Multi-Model Merging*, NeurIPS 2024, for the universe.
    """
    chosen = get_many_matcher(matcher, data=data, loss=loss, progress=progress)
    models = several(models)
    states = [tensors(model) for model in models]
    for i, state in enumerate(states):
        try:
            check_same_architecture(states[0], state)
        except ArchitectureError as error:
            raise ArchitectureError(f"model 0 (A) and model {i} (B) cannot be aligned: {error}") from error
        check_finite(state, f"model {i}")
    args, kwargs = resolve_inputs(models[0], example_inputs) if spec is None or check else ((), {})
    if spec is None:
        spec = infer(trace(models[0], args, kwargs))
    with unchanged({f"model {i}": model for i, model in enumerate(models)}, matcher):
        match = bind_many(chosen, models).match_many(spec, [parameters(model) for model in models])
    if not isinstance(match, ManyMatch) or len(match.permutations) != len(models):
        what = (
            f"{len(match.permutations)} permutations" if isinstance(match, ManyMatch) else f"a {type(match).__name__}"
        )
        raise MatcherError(
            f"matcher {name_of(matcher)!r} returned {what} for {len(models)} models, not a ManyMatch with one for each"
        )
    permutations = tuple(permutation_of(permutation, spec, matcher) for permutation in match.permutations)
    aligned = tuple(permutation.apply(model) for permutation, model in zip(permutations, models, strict=True))
    errors = None
    if check:
        pairs = enumerate(zip(models, aligned, strict=True))
        errors = tuple(compare(model, moved, args, kwargs, f"model {i}") for i, (model, moved) in pairs)
    return ManyAlignment(aligned, spec, permutations, match, errors)
