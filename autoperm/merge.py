"""One model from several: align, average, repair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn

from .align import Alignment, align
from .align_many import ManyAlignment, align_many
from .blend import average, barycentric, taken_from_first
from .copies import with_tensors
from .discover import discover
from .errors import SpecError
from .evaluate import Loss
from .matchers import AnyManyMatcher, AnyMatcher, is_for_many, takes
from .matching.match import course, name_of
from .renormalize import Renormalizer, get_renormalizer
from .repair import BoundRepair, Repaired
from .selection import select
from .spec import PermutationSpec
from .state import check_alike, interpolates, several, tensors

AnyAlignment = Alignment | ManyAlignment


@dataclass(frozen=True)
class Merged:
    """A model that was merged from others.

    Attributes:
        model: the merged model, with its units in the order of the first model's.
        weights: of the models, which sum to 1.
        alignment: how the models were aligned; None if they were aligned already.
        merged: names of the tensors that are a weighted mean.
        kept: names of the tensors that ``only=`` left out, which are those of the first model, unless a renormalizer
            has changed them.
        taken: names of the integer and boolean buffers, which have no mean and are those of the first model.
        renormalized: what repaired the statistics; None if nothing did.
        repaired: what REPAIR did, if it was REPAIR.
    """

    model: nn.Module = field(repr=False)
    weights: tuple[float, ...]
    alignment: AnyAlignment | None = field(repr=False)
    merged: tuple[str, ...] = field(repr=False)
    kept: tuple[str, ...] = field(repr=False)
    taken: tuple[str, ...] = field(repr=False)
    renormalized: str | None = None
    repaired: Repaired | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return what was aligned, merged, and left as in the first model."""
        weights = ", ".join(f"{weight:.4g}" for weight in self.weights)
        lines = [f"Merged {type(self.model).__name__} of {len(self.weights)} models, weights {weights}"]
        lines.append(f"  aligned:      {_aligned(self.alignment)}")
        lines.append(f"  merged:       {_listed(self.merged)}")
        if self.kept:
            lines.append(f"  of model 0:   {_listed(self.kept)}")
        if self.taken:
            lines.append(f"  not averaged: {_listed(self.taken)}: integers of model 0")
        extent = f", {self.repaired.extent}, to {self.repaired.error:.0e} of a deviation" if self.repaired else ""
        lines.append(f"  renormalized: {self.renormalized or 'no'}{extent}")
        return "\n".join(lines)


def merge(
    models: Sequence[nn.Module],
    weights: Sequence[float] | None = None,
    *,
    align: bool = True,
    matcher: str | AnyMatcher | AnyManyMatcher | None = None,
    only: str | Sequence[str] | None = None,
    renormalize: str | Renormalizer | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: Any = None,
    check: bool = True,
    progress: bool = False,
) -> Merged:
    r"""Merge models: permute their units into one order, and average their weights.

    .. math:: \theta = \sum_i w_i \, \pi_i(\theta_i)

    Units stay in the first model's order. With ``only``, tensors that are not chosen stay the first model's own: what
    it has learnt there is kept, and since the others were aligned with it, what is merged fits it.

    Args:
        models: two or more models of the same architecture. They are not changed.
        weights: one for each model; equal by default.
        align: whether to align them first: False for models that are aligned already, or were fine-tuned from one.
        matcher: how to align them: a name or a matcher, as for :func:`~autoperm.align` and
            :func:`~autoperm.align_many`. By default ``"weight"`` for two models, ``"merge-many"`` for more.
        only: what to merge, if not everything: patterns of names of tensors or modules (``"layer1.*"``,
            ``"blocks.0"``), or names of factors of the specification, for all tensors that carry them.
        renormalize: what to do about the statistics of the merged model: a name, such as ``"batch_norm"``, or an
            object, as for :func:`~autoperm.interpolate`. It treats the whole model, also what ``only`` left out.
        data: batches of training data, for the matcher and the renormalizer, as far as they are named and read data.
            One that is an object holds its own.
        loss: ``loss(output, target)``, for a matcher that is named and needs it.
        spec: which axes may be permuted, if it is known already.
        example_inputs: a tensor, a tuple of positional inputs, or a dictionary of inputs by name. Common models need
            none.
        check: compare each aligned model with the given one on the example inputs.
        progress: show a progress bar, if the matcher is one that was named.

    Returns:
        The merged model with all that was learnt on the way; print it.

    Raises:
        ArchitectureError: if there are fewer than two models, or their tensors differ in name, shape, dtype or device;
            the message says which of the models.
        WeightsError: if a model has NaN or infinite weights.
        SpecError: if weights do not fit the models, a pattern chooses nothing, or nothing reads the data.
        MatcherError: as for :func:`~autoperm.align`.
        TraceError: as for :func:`~autoperm.align`.
        EquivalenceError: as for :func:`~autoperm.align`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> twin = discover(model).random(0).apply(model)  # computes the same, with its units shuffled
        >>> merged = merge([model, twin])
        >>> x = torch.randn(5, 4)
        >>> torch.testing.assert_close(merged.model(x), model(x))

    References:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023). Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time", arXiv 2203.05482 (2022), for models that need no aligning.
    """
    models = several(models)
    if not align and (matcher is not None or loss is not None):
        raise SpecError(f"{'loss' if matcher is None else 'matcher'} is given, but with align=False nothing reads it")
    if align and matcher is None:
        matcher = "weight" if len(models) == 2 else "merge-many"
    for_matcher, renormalizer = split_data(matcher, renormalize, data)
    shares = barycentric(weights, len(models))
    check_alike({f"model {i}": model for i, model in enumerate(models)})
    if only is not None and spec is None and align:  # a slip in only= is found before matching
        spec = discover(models[0], example_inputs)
    state = tensors(models[0])
    chosen = select(only, state, spec)

    aligned, alignment = models, None
    if matcher is not None:
        aligned, alignment = _align(
            models,
            matcher=matcher,
            data=for_matcher,
            loss=loss,
            spec=spec,
            example_inputs=example_inputs,
            check=check,
            progress=progress,
        )
    states = [tensors(each) for each in aligned]
    mean = average([{name: each[name] for name in chosen} for each in states], shares)
    model = with_tensors(models[0], mean)
    repaired = None
    if renormalizer is not None:
        finish = renormalizer.bind(aligned)
        if isinstance(finish, BoundRepair):
            repaired = finish.repair(model, shares)
        model = finish(model, shares) if repaired is None else repaired.model
    return Merged(
        model,
        shares,
        alignment,
        merged=tuple(name for name in chosen if interpolates(state[name])),
        kept=tuple(name for name in state if name not in set(chosen) and interpolates(state[name])),
        taken=taken_from_first(state),
        renormalized=None if renormalize is None else name_of(renormalize),
        repaired=repaired,
    )


def split_data(
    matcher: object, renormalize: str | Renormalizer | None, data: Iterable[Any] | None
) -> tuple[Iterable[Any] | None, Renormalizer | None]:
    """Return the data for a matcher, and a renormalizer with its data.

    Both read the same data if both are named and read any.

    Raises:
        SpecError: if nothing reads the data, or the renormalizer lacks them.
        MatcherError: if no matcher has the name.
    """
    reads = isinstance(matcher, str) and takes(matcher, "data")
    named = isinstance(renormalize, str)
    renormalizer = get_renormalizer(renormalize, data if named else None)
    if data is not None and not reads and not named:
        raise SpecError("data is given, but no matcher or renormalizer that is named reads it; leave it out")
    return data if reads else None, renormalizer


def _align(
    models: tuple[nn.Module, ...], matcher: str | AnyMatcher | AnyManyMatcher, **options: Any
) -> tuple[tuple[nn.Module, ...], AnyAlignment]:
    """Return the models in the order of the first, which stays as it is, and how they were aligned."""
    if len(models) == 2 and not is_for_many(matcher):
        pair = align(models[0], models[1], matcher=cast("str | AnyMatcher", matcher), **options)
        return (models[0], pair.model), pair
    found = align_many(models, matcher=matcher, **options)
    back = found.permutations[0].inverse()
    permutations = tuple(back.compose(permutation) for permutation in found.permutations)
    moved = tuple(permutation.apply(model) for permutation, model in zip(permutations, models, strict=True))
    match = replace(found.match, permutations=permutations)
    return moved, replace(found, models=moved, permutations=permutations, match=match)


def _aligned(alignment: AnyAlignment | None) -> str:
    if alignment is None:
        return "no, as they were"
    errors = alignment.errors if isinstance(alignment, ManyAlignment) else alignment.error
    worst = max(errors) if isinstance(errors, tuple) else errors
    checked = "not checked" if worst is None else f"checked to {worst:.0e}"
    how = "" if alignment.match is None else f"{course(alignment.match)}, "
    return f"{how}{checked}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shown})"
