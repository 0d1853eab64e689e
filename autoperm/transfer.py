"""What a model learnt after it was copied, carried to another: arithmetic of task vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .align import Alignment, align
from .copies import with_tensors
from .errors import SpecError, WeightsError
from .evaluate import Loss
from .matchers import AnyMatcher
from .merge import split_data
from .renormalize import Renormalizer
from .spec import PermutationSpec
from .state import check_alike, check_same_architecture, interpolates, tensors


@dataclass(frozen=True)
class Transferred:
    """A model that has learnt what other models learnt.

    Attributes:
        model: base model A with the task vectors of models that were tuned from base model B.
        scales: of the task vectors.
        alignment: how base B was aligned with base A.
        vectors: the task vectors in A's order of units, not scaled.
    """

    model: nn.Module = field(repr=False)
    scales: tuple[float, ...]
    alignment: Alignment = field(repr=False)
    vectors: tuple[Mapping[str, Tensor], ...] = field(repr=False)

    def __str__(self) -> str:
        """Return what was carried, how large it is, and how the bases were aligned."""
        base = {name: value for name, value in tensors(self.alignment.model).items() if interpolates(value)}
        size = _norm(base)
        count = f"{len(self.vectors)} task vector{'s' * (len(self.vectors) != 1)}"
        lines = [f"{type(self.model).__name__} with {count} transferred"]
        for scale, vector in zip(self.scales, self.vectors, strict=True):
            lines.append(f"  scale {scale:.4g}, length {_norm(vector) / size:.2%} of base B's")
        return "\n".join([*lines, "", str(self.alignment)])


def task_vector(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what tuning has changed, theta_tuned - theta_base, for every floating or complex tensor.

    Args:
        tuned: state dict of the tuned model.
        base: state dict of the model that it began as.

    Raises:
        ArchitectureError: if the state dicts differ in names, shapes, dtypes or devices, as a new head does: leave it
            out of both.

    Example:
        >>> import torch
        >>> task_vector({"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])})
        {'w': tensor([0., 2.])}

    Reference:
        Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089 (2023), Section 2.
    """
    check_same_architecture(tuned, base)
    return {name: (tuned[name] - base[name]).detach() for name in base if interpolates(base[name])}


def add_task_vectors(
    base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], scales: Sequence[float] | None = None
) -> dict[str, Tensor]:
    r"""Return :math:`\theta_\text{base} + \sum_i s_i \tau_i`, in the order of names of the base.

    Tensors that no vector has, such as integer buffers, are those of the base.

    Args:
        base: state dict.
        vectors: of :func:`task_vector`, in the same order of units.
        scales: one for each vector, 1 by default; negative to forget a task.

    Returns:
        A new state dict. Its tensors share no memory with the inputs.

    Raises:
        SpecError: if there is not one finite scale for each vector, or a vector has a name, shape, dtype or device that
            the base does not have.

    Example:
        >>> import torch
        >>> base, learnt, other = ({"w": torch.tensor([value])} for value in (1.0, 2.0, 4.0))
        >>> add_task_vectors(base, [learnt, other], [1.0, -0.5])
        {'w': tensor([1.])}

    Reference:
        Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089 (2023), Section 2.
    """
    factors = _scales(1.0 if scales is None else scales, len(vectors))
    for i, vector in enumerate(vectors):
        for name, value in vector.items():
            here = _kind(base[name]) if name in base else "nothing"
            if _kind(value) != here:
                raise SpecError(f"task vector {i} has {_kind(value)} for '{name}', but the base has {here}")
    return {
        name: _add(base[name], [(s, v[name]) for s, v in zip(factors, vectors, strict=True) if name in v])
        for name in base
    }


def _add(base: Tensor, changes: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The base with what is added to it, rounded once."""
    half = base.is_floating_point() and base.itemsize < 4
    total = base.detach().float() if half else base.detach().clone()
    for scale, change in changes:
        if scale:
            total += scale * change.detach().to(total.dtype)
    return total.to(base.dtype)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}, {tensor.dtype} on {tensor.device}"


def transfer(
    base_a: nn.Module,
    base_b: nn.Module,
    tuned_b: nn.Module | Sequence[nn.Module],
    scale: float | Sequence[float] = 1.0,
    *,
    matcher: str | AnyMatcher = "weight",
    renormalize: str | Renormalizer | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: Any = None,
    check: bool = True,
    progress: bool = False,
) -> Transferred:
    r"""Carry what models learnt, that were tuned from one base model, into the basin of another.

    .. math:: \theta_A + \sum_i s_i \, \pi(\theta_{B,i} - \theta_B)

    where the permutation is found between the two bases, which have seen the same task; the tuned models need no
    matching.

    Args:
        base_a: the model that is to learn; it is not changed.
        base_b: a model of the same architecture, usually trained from another seed. It is not changed.
        tuned_b: the model, or models for several tasks, tuned from base B. They are not changed.
        scale: of the task vectors, or one for each.
        matcher: how to align base B with base A, as for :func:`~autoperm.align`.
        renormalize: what to do about the statistics of the result, as for :func:`~autoperm.interpolate`; as the
            result lies between no models, its only end is base A.
        data: batches of training data, for the matcher and the renormalizer, as far as they are named and read data.
        loss: ``loss(output, target)``, for a matcher that is named and needs it.
        spec: which axes may be permuted, if it is known already.
        example_inputs: a tensor, a tuple of positional inputs, or a dictionary of inputs by name. Common models need
            none.
        check: compare the aligned base B with base B on the example inputs.
        progress: show a progress bar, if the matcher is one that was named.

    Returns:
        The model with all that was learnt on the way; print it.

    Raises:
        ArchitectureError: if the models' tensors differ in name, shape, dtype or device; the message says whose.
        WeightsError: if a model has NaN or infinite weights, or a variance of BatchNorm would become negative.
        SpecError: if there is not one finite scale for each tuned model, or nothing reads the data.
        MatcherError: as for :func:`~autoperm.align`.
        TraceError: as for :func:`~autoperm.align`.
        EquivalenceError: as for :func:`~autoperm.align`.

    Example:
        >>> make = lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> base_a, base_b, tuned_b = make(), make(), make()
        >>> same = transfer(base_a, base_b, tuned_b, scale=0.0)
        >>> bool((same.model[0].weight == base_a[0].weight).all())
        True

    References:
        Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089 (2023). Rinaldi et al., "Update Your
        Transformer to the Latest Release: Re-Basin of Task Vectors", arXiv 2505.22697 (2025), who carry task vectors by
        permutations.
    """
    tuned = [tuned_b] if isinstance(tuned_b, nn.Module) else list(tuned_b)
    if not tuned:
        raise SpecError("tuned_b is empty; give one model that was tuned from base B, or several")
    scales = _scales(scale, len(tuned))
    for_matcher, renormalizer = split_data(matcher, renormalize, data)
    check_alike({"base A": base_a, "base B": base_b} | {_name(i, tuned): model for i, model in enumerate(tuned)})
    alignment = align(
        base_a,
        base_b,
        matcher=matcher,
        data=for_matcher,
        loss=loss,
        spec=spec,
        example_inputs=example_inputs,
        check=check,
        progress=progress,
    )
    moved = [alignment.permutation.apply(model) for model in tuned]
    base = tensors(alignment.model)
    vectors = tuple(task_vector(tensors(model), base) for model in moved)
    model = with_tensors(base_a, add_task_vectors(tensors(base_a), vectors, scales))
    if renormalizer is not None:
        model = renormalizer.bind((base_a,))(model, (1.0,))
    else:
        _check_variances(model)
    return Transferred(model, scales, alignment, vectors)


def _name(i: int, tuned: Sequence[nn.Module]) -> str:
    return "tuned B" if len(tuned) == 1 else f"tuned B {i}"


def _scales(scale: float | Sequence[float], count: int) -> tuple[float, ...]:
    scales = tuple(map(float, scale)) if isinstance(scale, Sequence) else (float(scale),) * count
    if len(scales) != count or not all(math.isfinite(each) for each in scales):
        raise SpecError(f"the scales are {scales}, but must be {count} finite numbers, one for each task vector")
    return scales


def _check_variances(model: nn.Module) -> None:
    """A sum of variances may be negative, and then the model gives NaN."""
    for name, module in model.named_modules():
        variance = getattr(module, "running_var", None)
        if isinstance(variance, Tensor) and bool((variance < 0).any()):
            raise WeightsError(
                f"{int((variance < 0).sum())} running variances of '{name}' become negative with these scales; "
                "re-estimate them with renormalize='batch_norm' and data=..., or take a smaller scale"
            )


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.abs().double().square().sum()) for value in state.values()))
