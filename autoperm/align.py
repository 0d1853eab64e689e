"""The front door: two models in, one of them moved into the basin of the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn

from . import plot
from .activations import ActivationMatch
from .copies import copy_model
from .discover import infer
from .equivalence import Reference
from .errors import EquivalenceError
from .evaluate import Loss
from .inputs import resolve_inputs
from .matchers import AnyMatcher, bind, get_matcher, parameters, unchanged
from .matching import Match
from .matching.match import course, permutation_of
from .matching.similarity import GroupSimilarity, similarities, unit_similarity
from .permutation import Permutation
from .report import pinned_because, shorten, table
from .spec import PermutationSpec
from .state import check_finite, check_same_architecture, tensors
from .trace import trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Alignment:
    """A model aligned with another.

    Attributes:
        model: a new model that computes what B computes, with its units in A's order.
        spec: which axes could be permuted, and why others could not.
        permutation: what was done to B: ``permutation.apply(model_b)`` is ``model``.
        match: how the permutation was found, if the matcher says.
        groups: for each factor, how many units moved, and how alike A's and B's parameters were and are.
        error: the largest difference between the outputs of B and of ``model`` in float64, relative to the largest
            output; None if it was not checked.
    """

    model: nn.Module = field(repr=False)
    spec: PermutationSpec = field(repr=False)
    permutation: Permutation = field(repr=False)
    match: Match | None = field(repr=False)
    groups: tuple[GroupSimilarity, ...] = field(repr=False)
    error: float | None

    def __str__(self) -> str:
        """Return what was found, matched and left alone, and why."""
        spec = self.spec
        lines = [f"Alignment of {type(self.model).__name__}"]
        inside = len(spec.free) - len(spec.groups)
        more = f" with {inside} more factor{'s' * (inside != 1)} inside" if inside else ""
        groups = f"{len(spec.groups)} group{'s' * (len(spec.groups) != 1)}"
        lines.append(f"  found:   {groups}{more}, 10^{spec.log10_order:.1f} permutations")
        if self.match is not None:
            lines.append(f"  matched: {course(self.match)}")
        if isinstance(self.match, ActivationMatch) and self.match.silent:
            silent = ", ".join(self.match.silent[:8]) + (", ..." if len(self.match.silent) > 8 else "")
            lines.append(f"  silent:  {silent}: no activation speaks for them, so they did not move")
        checked = "not checked" if self.error is None else f"the model computes what B computes, to {self.error:.0e}"
        lines.append(f"  checked: {checked}")
        rows = [["group", "units", "moved", "similarity", "carried by"]]
        for group in self.groups:
            factor = group.factor
            copies = spec.copies(factor)
            axes = spec.carriers[factor.name]
            units = str(factor.size) if copies == 1 else f"{copies} x {factor.size}"
            shown = ", ".join(f"{tensor}[{axis}]" for tensor, axis in axes[:2]) + (", ..." if len(axes) > 2 else "")
            similarity = f"{group.before:.2f} -> {group.after:.2f}"
            rows.append([factor.name, units, f"{group.moved:.0%}", similarity, shown])
        if len(rows) > 1:
            lines += ["", table(shorten(rows))]
        reasons = pinned_because(spec)
        if reasons:
            lines += ["", "  left alone:", table(reasons[:8], indent=4)]
        if spec.unknown:
            lines += ["", "  no rule, so all their axes were left alone:", *(f"    {text}" for text in spec.unknown)]
        return "\n".join(lines)

    def draw(self, model_a: nn.Module, factor: str, path: str | PathLike[str] | None = None) -> Figure:
        """Draw how alike the units of A and B were and are; see :func:`autoperm.plot.matching`. Needs matplotlib.

        The mean of the diagonal, in the titles, counts all units alike. In the similarity of the printed alignment a
        unit with larger weights counts more.

        Args:
            model_a: the model that B was aligned with.
            factor: which units; the printed alignment names them.
            path: where to save the picture; the ending says in which format.

        Returns:
            The figure drawn on.

        Raises:
            SpecError: if there are no such units.
        """
        a, b = parameters(model_a), parameters(self.model)
        before = unit_similarity(self.spec, a, b, factor, permutation=self.permutation.inverse())
        return plot.saved(
            plot.matching(before, unit_similarity(self.spec, a, b, factor), title=f"units {factor}"), path
        )


def align(
    model_a: nn.Module,
    model_b: nn.Module,
    *,
    example_inputs: Any = None,
    spec: PermutationSpec | None = None,
    matcher: str | AnyMatcher = "weight",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    check: bool = True,
    progress: bool = False,
) -> Alignment:
    """Permute the units of model B so that they are in the order of model A's.

    Args:
        model_a: the model that stays; it may be on any device.
        model_b: a model of the same architecture, usually trained from another seed. It is not changed.
        example_inputs: a tensor, a tuple of positional inputs, or a dictionary of inputs by name. Common models need
            none.
        spec: which axes may be permuted, if it is known already; else it is discovered from model A.
        matcher: a name, or any callable ``(spec, params_a, params_b) -> Permutation``. From the weights alone:
            ``"weight"``, ``"graduated"`` and ``"frank-wolfe"``. With ``data``: ``"activation"``. With ``data`` and
            ``loss``: ``"straight-through"`` and ``"sinkhorn"``. To compare with: ``"identity"``, ``"greedy"``,
            ``"exhaustive"`` (for tiny models) and ``"annealing"`` (with ``data`` and ``loss``, or neither).
        data: batches ``(input, target)``, for a matcher that is named and needs them; ``"activation"`` reads no
            targets, and may have the inputs alone.
        loss: ``loss(output, target)``, the mean over the batch, for a matcher that is named and needs it.
        check: compare the aligned model with B on the example inputs.
        progress: show a progress bar, if the matcher is one that was named.

    Returns:
        The aligned model with all that was learnt on the way; print it.

    Raises:
        ArchitectureError: if the models' tensors differ in name, shape, dtype or device.
        WeightsError: if weights are NaN or infinite.
        TraceError: if the model cannot be traced, or no inputs are found.
        MatcherError: if no matcher has the name, it lacks data or does not need them, or what it returns is no
            permutation of the specification, or it has changed a model.
        EquivalenceError: if the aligned model does not compute what B computes.

    Example:
        >>> import torch
        >>> make = lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> a, b = make(), make()
        >>> aligned = align(a, b)
        >>> x = torch.randn(5, 4)
        >>> torch.testing.assert_close(aligned.model(x), b(x))

    Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023.
    """
    chosen = get_matcher(matcher, data=data, loss=loss, progress=progress)
    state_a, state_b = tensors(model_a), tensors(model_b)
    check_same_architecture(state_a, state_b)
    check_finite(state_a, "model A")
    check_finite(state_b, "model B")
    args, kwargs = resolve_inputs(model_a, example_inputs) if spec is None or check else ((), {})
    if spec is None:
        spec = infer(trace(model_a, args, kwargs))
    with unchanged({"model A": model_a, "model B": model_b}, matcher):
        found = bind(chosen, model_a, model_b)(spec, parameters(model_a), parameters(model_b))
    permutation = permutation_of(found, spec, matcher)
    aligned = permutation.apply(model_b)
    error = compare(model_b, aligned, args, kwargs, "model B") if check else None
    groups = similarities(spec, parameters(model_a), parameters(model_b), permutation)
    return Alignment(aligned, spec, permutation, found if isinstance(found, Match) else None, groups, error)


def compare(model: nn.Module, aligned: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], which: str) -> float:
    """Return the difference of two models' outputs.

    Raises:
        EquivalenceError: if it is more than rounding.
    """
    reference = Reference.of(model, args, kwargs, 1e-6)
    error = reference.error(copy_model(aligned))
    if not error <= reference.tolerance:
        raise EquivalenceError(
            f"the aligned model does not compute what {which} computes: outputs differ by {error:.2g} of their size.\n"
            "  If A and B were built with different options (heads, activations), align the other way round or pass a "
            "spec discovered from B.\n  If you registered a rule or wrote the specification, check it with "
            "spec.verify(model_b, inputs), which names the factors at fault. Else please report this."
        )
    return error
