"""Arithmetic of state dicts: linear and spherical interpolation, and means."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .errors import ArchitectureError, SpecError, WeightsError
from .state import check_same_architecture, interpolates

_CHUNK = 1 << 20
"""How many weights are taken in double precision at once to measure an angle, so that no copy of a model is made."""


def lerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> dict[str, Tensor]:
    """Interpolate linearly between two state dicts.

    For every floating or complex tensor

        theta(lam) = (1 - lam) theta_A + lam theta_B

    in the tensor's own dtype. The ends are exact: ``lam=0`` gives A and ``lam=1`` gives B bitwise, and where A
    and B are equal so is every point between. Integer and boolean tensors (``num_batches_tracked``, index
    tables) are taken from A: see :func:`taken_from_first`. Two names that share memory give equal values, not
    shared memory; loading the result in a model that ties them keeps the tie.

    Args:
        a: State dict of model A.
        b: State dict of model B, with the same names, shapes, dtypes and devices.
        lam: Position in [0, 1]; 0 is A and 1 is B.

    Returns:
        A new state dict with A's order of names. Its tensors share no memory with the inputs.

    Raises:
        ArchitectureError: If the state dicts differ in names, shapes, dtypes or devices.
        SpecError: If ``lam`` is outside [0, 1].

    Example:
        >>> lerp({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 8.0])}, 0.25)
        {'w': tensor([0.2500, 5.0000])}

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Definition 2.2, in which theta(lam) is the argument of the loss.
    """
    _check_position(lam)
    check_same_architecture(a, b)
    return _new(a, lambda out, name: mean_into(out, (a[name], b[name]), (1.0 - lam, lam)))


def slerp(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float, *, linear: Collection[str] = ()
) -> dict[str, Tensor]:
    """Interpolate spherically between two state dicts, taken as two long vectors.

        theta(lam) = sin((1 - lam) omega) / sin(omega) theta_A + sin(lam omega) / sin(omega) theta_B

    with the angle omega = arccos(<theta_A, theta_B> / (|theta_A| |theta_B|)), measured in double precision over all
    floating and complex tensors at once; one that stands under two names counts twice. Ends are exact, integer and
    boolean tensors are taken from A. Vectors that are parallel, or one of which is zero, are interpolated linearly, to
    which the formula tends.

    Args:
        a: State dict of model A.
        b: State dict of model B, with the same names, shapes, dtypes and devices.
        lam: Position in [0, 1]; 0 is A and 1 is B.
        linear: Names of tensors that do not belong to the vectors and are interpolated linearly. Between networks at
            a right angle both factors are 0.7 in the middle, which would make running variances too large by 1.4:
            :func:`~autoperm.interpolate` names all buffers here.

    Returns:
        A new state dict with A's order of names. Its tensors share no memory with the inputs.

    Raises:
        ArchitectureError: If the state dicts differ in names, shapes, dtypes or devices.
        SpecError: If ``lam`` is outside [0, 1].
        WeightsError: If the vectors are opposite, so that there is no shortest arc.

    Example:
        >>> slerp({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, 0.5)
        {'w': tensor([0.7071, 0.7071])}

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), footnote 3, which found no significant gain over the straight path.
    """
    _check_position(lam)
    check_same_architecture(a, b)
    arc = [name for name in a if name not in linear]
    omega = angle(a, b, arc)

    def fill(out: Tensor, name: str) -> None:
        if name in linear:
            mean_into(out, (a[name], b[name]), (1.0 - lam, lam))
        else:
            arc_into(out, a[name], b[name], lam, omega)

    return _new(a, fill)


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted mean of two state dicts or more.

        theta = sum_i w_i theta_i / sum_i w_i

    Of two it is :func:`lerp`, bitwise. It is exact where only one weight is not zero, and where all are equal. In half
    precision the mean of more than two is taken in single precision and rounded once. Integer and boolean tensors
    are taken from the first: see :func:`taken_from_first`.

    Args:
        states: State dicts with the same names, shapes, dtypes and devices.
        weights: One for each, not negative; only their proportions count. By default all are equal.

    Returns:
        A new state dict with the first one's order of names. Its tensors share no memory with the inputs.

    Raises:
        ArchitectureError: If there are fewer than two, or one differs from the first in names, shapes, dtypes or
            devices; the message says which.
        SpecError: If the weights are not one for each, or negative, not finite or all zero.

    Example:
        >>> average([{"w": torch.tensor([0.0])}, {"w": torch.tensor([3.0])}, {"w": torch.tensor([6.0])}], (1, 1, 2))
        {'w': tensor([3.7500])}

    Reference:
        Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
        increasing inference time", arXiv 2203.05482 (2022).
    """
    check_same_architectures(states)
    shares = barycentric(weights, len(states))
    return _new(states[0], lambda out, name: mean_into(out, [state[name] for state in states], shares))


def barycentric(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return weights divided by their sum; equal ones if there are none.

    Args:
        weights: One for each model, not negative.
        count: How many models there are.

    Raises:
        SpecError: If the weights are not one for each, or negative, not finite or all zero.

    Example:
        >>> barycentric((1, 1, 2), 3)
        (0.25, 0.25, 0.5)
    """
    try:
        given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise SpecError(f"the weights are {weights!r}, but must be {count} numbers, one for each model") from error
    if len(given) != count:
        raise SpecError(f"there are {len(given)} weights for {count} models; give one for each")
    total = sum(given)
    if not all(weight >= 0.0 for weight in given) or not math.isfinite(total) or total == 0.0:
        raise SpecError(f"the weights of a mean must be finite and not negative, nor all 0, but are {tuple(given)}")
    return tuple(weight / total for weight in given)


def taken_from_first(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors that no interpolation changes: integers and booleans, taken from the first model.

    Example:
        >>> taken_from_first(torch.nn.BatchNorm1d(2).state_dict())
        ('num_batches_tracked',)
    """
    return tuple(name for name, tensor in state.items() if not interpolates(tensor))


def check_same_architectures(states: Sequence[Mapping[str, Tensor]]) -> None:
    """Check that state dicts have the names, shapes, dtypes and devices of the first.

    Raises:
        ArchitectureError: If there are fewer than two, or one differs; the message says which.

    Example:
        >>> check_same_architectures([{"w": torch.zeros(1)}] * 3)
    """
    if isinstance(states, Mapping) or len(states) < 2:
        raise ArchitectureError(f"a list of 2 models or more is needed, and got {1 if states else 0}")
    for i, state in enumerate(states[1:], start=1):
        try:
            check_same_architecture(states[0], state)
        except ArchitectureError as error:
            if len(states) == 2:
                raise
            raise ArchitectureError(f"between model 0 (A) and model {i} (B): {error}") from error


def mean_into(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write the weighted mean of tensors into another one, which shares no memory with them.

    It is taken by one linear interpolation after another, so that the mean of two is that of :func:`lerp`, and the mean
    of equal ones is exact.

    Args:
        out: of the shape and dtype of the tensors.
        tensors: integers and booleans are taken from the first.
        weights: one for each, which sum to 1.

    Example:
        >>> out = torch.empty(1)
        >>> mean_into(out, [torch.tensor([2.0]), torch.tensor([6.0])], (0.25, 0.75))
        >>> out
        tensor([5.])
    """
    used = [(tensor.detach(), weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0]
    if not interpolates(out):
        out.copy_(tensors[0].detach())
    elif len(used) == 1:  # torch.lerp turns -0.0 at an end into 0.0, which is not bitwise
        out.copy_(used[0][0])
    elif len(used) == 2:
        torch.lerp(used[0][0], used[1][0], used[1][1], out=out)
    else:
        half = out.is_floating_point() and out.itemsize < 4
        mean = used[0][0].float() if half else out.copy_(used[0][0])
        total = used[0][1]
        for tensor, weight in used[1:]:
            total += weight
            torch.lerp(mean, tensor.float() if half else tensor, weight / total, out=mean)
        if half:
            out.copy_(mean)


def arc_into(out: Tensor, a: Tensor, b: Tensor, lam: float, omega: float) -> None:
    """Write the point between two tensors on an arc of a known angle into another one; see :func:`slerp`.

    Example:
        >>> out = torch.empty(1)
        >>> arc_into(out, torch.tensor([1.0]), torch.tensor([0.0]), 0.5, math.pi / 2)
        >>> out
        tensor([0.7071])
    """
    a, b = a.detach(), b.detach()
    if lam in (0.0, 1.0) or omega == 0.0 or not interpolates(out):
        mean_into(out, (a, b), (1.0 - lam, lam))
        return
    of_a, of_b = (math.sin(part * omega) / math.sin(omega) for part in (1.0 - lam, lam))
    if out.is_floating_point() and out.itemsize < 4:
        out.copy_(a.float().mul_(of_a).add_(b.float(), alpha=of_b))
    else:
        torch.mul(a, of_a, out=out).add_(b, alpha=of_b)


def angle(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Collection[str]) -> float:
    """Return the angle between two state dicts in radians, or 0 if it is too small for its sine to matter.

    Args:
        a: State dict of model A.
        b: State dict of model B.
        names: Which tensors belong to the vectors; integers and booleans do not.

    Raises:
        WeightsError: If the vectors are opposite.

    Example:
        >>> angle({"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([3.0, 3.0])}, ["w"])
        0.785398...
    """
    products = torch.zeros(3, dtype=torch.float64)
    for name in names:
        if interpolates(a[name]):
            for x, y in zip(_chunks(a[name]), _chunks(b[name]), strict=True):
                products += torch.stack([x.dot(y), x.dot(x), y.dot(y)]).cpu()
    product, of_a, of_b = products.tolist()
    if of_a == 0.0 or of_b == 0.0:
        return 0.0
    omega = math.acos(max(-1.0, min(1.0, product / (math.sqrt(of_a) * math.sqrt(of_b)))))
    if math.pi - omega < 1e-6:
        raise WeightsError("model A and model B are opposite, so that no arc between them is the shortest; use lerp")
    return omega if omega >= 1e-6 else 0.0


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return (part.double() for part in torch.split(flat, _CHUNK))


def _check_position(lam: float) -> None:
    if not 0.0 <= lam <= 1.0:
        raise SpecError(f"lam is {lam}, but a position between model A (0) and model B (1) is in [0, 1]")


def _new(like: Mapping[str, Tensor], fill: Callable[[Tensor, str], None]) -> dict[str, Tensor]:
    """Make a state dict whose tensors are filled one by one."""
    made = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in like.items()}
    for name, tensor in made.items():
        fill(tensor, name)
    return made
