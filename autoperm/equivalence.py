"""Does a permuted model compute what the original computes? Checked in float64, on copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .copies import copy_model
from .errors import EquivalenceError, TraceError
from .evaluate import device_of, evaluating
from .permutation import Permutation
from .spec import PermutationSpec
from .structure import replace_tensors, tensors_in


def arguments(inputs: Sequence[Any] | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional inputs and inputs by name."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def outputs(
    model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, gradients: bool = False
) -> list[Tensor]:
    """Return the floating-point tensors that a model computes in evaluation mode, in a fixed order.

    The model's mode is restored; gradients are recorded only if asked for. Random numbers that the model draws are the
    same in every call.
    """
    device = device_of(model)
    with (
        evaluating(model),
        torch.set_grad_enabled(gradients),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(0)
        result = model(*inputs, **(kwargs or {}))
    return [tensor for tensor in tensors_in(result) if tensor.is_floating_point() or tensor.is_complex()]


def in_float64(value: Any) -> Any:
    """Return floating-point tensors in float64, everything else as it is."""
    return replace_tensors(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@dataclass(frozen=True)
class Reference:
    """What a model computes, to compare other models with: in float64, or in its own precision if that does not run.

    Attributes:
        model: a copy of the model in that precision.
        tolerance: the difference, relative to the largest output, that rounding may make.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    tolerance: float

    @classmethod
    def of(cls, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], tolerance: float) -> Reference:
        """Run a model on inputs.

        Raises:
            TraceError: if it does not run, or returns nothing to compare.
        """
        # A call may change the model (a counter, a cache), so each is made on a copy of its own.
        exact = copy_model(model).double()
        try:
            given, named = in_float64(tuple(args)), in_float64(dict(kwargs))
            with _Precision() as inside:
                found = outputs(copy_model(exact), given, named)
            tolerance = max(tolerance, inside.eps ** (2 / 3))
            check_comparable(found)  # a mask as large as the type allows may overflow
        except Exception as error:  # anything that the user's forward may raise
            tolerance = max(tolerance, in_native_precision(model, error))
            exact, given, named = model, tuple(args), dict(kwargs)
            found = outputs(copy_model(exact), given, named)
            check_comparable(found)
        return cls(exact, given, named, found, tolerance)

    def error(self, other: nn.Module) -> float:
        """Return the relative difference of another model's outputs; that model is a copy, which may change."""
        kinds = {parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()}
        other = other.double() if kinds == {torch.float64} else other
        return difference(self.outputs, outputs(other, self.args, self.kwargs))

    def noise(self) -> float:
        """Return the relative difference that rounding of the weights makes by itself."""
        other, generator = copy_model(self.model), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.is_floating_point():
                    sign = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter) * 2 - 1
                    parameter.mul_(1 + 64 * torch.finfo(parameter.dtype).eps * sign)
        return difference(self.outputs, outputs(other, self.args, self.kwargs))


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the coarsest precision in which a model computes.

    Some models compute norms or experts in float32 whatever their own precision is, and round differently when units
    stand in another order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.is_floating_point() or tensor.is_complex():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        return result


def in_native_precision(model: nn.Module, error: Exception) -> float:
    """Return the tolerance for a model that does not run in float64.

    Some kernels have no float64 version; such a model is compared as it is, to what its precision allows.

    Raises:
        TraceError: if the model is in float64 already, so that the error has another reason.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if kinds <= {torch.float64}:
        raise TraceError(f"the model does not run on its example inputs: {error}") from error
    return float(max(torch.finfo(dtype).eps for dtype in kinds) ** 0.5)


def check_comparable(reference: Sequence[Tensor]) -> None:
    """Check that outputs say something: two outputs that are nothing but NaN are always the same.

    Raises:
        TraceError: if there is no finite value.
    """
    if not reference:
        raise TraceError("the model returns no floating-point tensor, so there is nothing to compare")
    if not any(bool(tensor.isfinite().any()) for tensor in reference):
        raise TraceError("no value that the model returns is finite, so there is nothing to compare")


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, relative to the largest value in each."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:  # the path that depends on data was another
            return float("inf")
        if x.numel() == 0:
            continue
        finite = x.isfinite()
        if not torch.equal(finite, y.isfinite()):
            return float("inf")
        x, y = x[finite], y[finite]
        if x.numel():
            worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)))
    return worst


def verify(
    spec: PermutationSpec,
    model: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    draws: int,
    tolerance: float,
    generator: torch.Generator | int | None,
) -> float:
    """See :meth:`autoperm.PermutationSpec.verify`."""
    args, kwargs = arguments(inputs)
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    # A random permutation of few units is often the identity, so first comes one that moves every unit.
    elements = [_shift(spec, *(factor.name for factor in spec.free)), *(spec.random(generator) for _ in range(draws))]
    return compare(Reference.of(model, args, kwargs, tolerance), elements)


def compare(reference: Reference, elements: Iterable[Permutation]) -> float:
    """Return the largest change of the outputs by some group elements, relative to the largest output.

    Raises:
        EquivalenceError: if it is larger than the tolerance.
    """
    worst = 0.0
    for permutation in elements:
        worst = max(worst, reference.error(permutation.apply(reference.model)))
        if not worst <= reference.tolerance:
            raise EquivalenceError(
                f"a group element changes the outputs by {worst:.2g} of their size (allowed: "
                f"{reference.tolerance:.0g}).\n  {_culprits(permutation, reference)}"
            )
    return worst


def _shift(spec: PermutationSpec, *names: str) -> Permutation:
    """The group element that moves every unit of some factors to the next place."""
    return Permutation(spec, {name: spec.identity()[name].roll(1, -1) for name in names})


def _culprits(permutation: Permutation, reference: Reference) -> str:
    """Say which factors of a group element are wrong by themselves."""
    spec = permutation.spec
    alone = {factor.name: Permutation(spec, {factor.name: permutation[factor.name]}) for factor in spec.free}
    wrong = [
        name for name, part in alone.items() if not reference.error(part.apply(reference.model)) <= reference.tolerance
    ]
    if reference.noise() > reference.tolerance:
        return (
            "So does rounding its weights: on these inputs rounding decides the path (ties in a routing, a threshold, "
            "or among boxes that overlap), and nothing can be told. Verify on others."
        )
    if not wrong:
        return "No factor does so alone. Is the precision of the model enough?"
    axes = "; ".join(f"{n} on {', '.join(f'{t} axis {a}' for t, a in spec.carriers[n][:4])}" for n in wrong[:5])
    return f"Factors that do so alone: {axes}. If a rule of yours is on their way, check it; else please report this."
