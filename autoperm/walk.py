"""Walk from point to point between models, with a single copy of one of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .batches import is_mapping
from .blend import angle, arc_into, check_same_architectures, mean_into
from .copies import copy_model, forget_caches
from .errors import ArchitectureError, EvaluationError, SpecError, quoted
from .evaluate import Evaluator
from .metrics import checked
from .renormalize import Renormalizer
from .resume import Journal
from .state import check_finite, check_has_mean, check_same_indices, interpolates, tensors

Evaluate = Callable[[nn.Module], Mapping[str, float | Tensor]]
"""``evaluate(model)``: metrics by name, each a number."""

Route = Literal["lerp", "slerp"]
"""How the path from one model to another runs: straight, or along an arc."""

ROUTES: tuple[Route, ...] = ("lerp", "slerp")


@dataclass(frozen=True)
class Stop:
    """A point between models.

    Attributes:
        place: What messages call it, such as ``"lam = 0.5"``.
        weights: Barycentric: one for each model, which sum to 1.
    """

    place: str
    weights: tuple[float, ...]


class Walker:
    """One copy of the first of some models, which takes the weights of one point after another.

    The weights are written in the copy's own tensors, so that there is never a second copy. Models that do more than
    copy tensors when they load a state dict are given one.

    Args:
        models: Two models or more of one architecture; they are not changed.
        route: How the path from one to another runs. Of three or more the mean is always linear.

    Raises:
        ArchitectureError: If the models differ in names, shapes, dtypes, devices, index tables or tied weights.
        WeightsError: If a model has NaN or infinite weights.

    Example:
        >>> models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
        >>> for model, value in zip(models, (2.0, 6.0), strict=True):
        ...     _ = nn.init.constant_(model.weight, value)
        >>> Walker(models).to((0.25, 0.75)).weight.item()
        5.0
    """

    def __init__(self, models: Sequence[nn.Module], route: Route = "lerp") -> None:
        self._states = [tensors(model) for model in models]
        self._check(models)
        parameters = {name for name, _ in models[0].named_parameters(remove_duplicate=False)}
        # A dictionary keeps its order, so that the sum over all weights is the same in every process.
        self._arc = dict.fromkeys(name for name in self._states[0] if name in parameters and route == "slerp")
        self._angles: dict[tuple[int, int], float] = {}
        self._model = copy_model(models[0])
        self._in_place = _only_copies(self._model)
        for i in range(1, len(models)):
            self.to(tuple(float(i == j) for j in range(len(models))))
            self._check_loaded(i, models[i])

    def to(self, weights: Sequence[float]) -> nn.Module:
        """Return the copy at a point, in eval mode; it is moved on at the next call.

        Raises:
            EvaluationError: If someone has changed the shape, dtype or device of the copy's tensors meanwhile.
        """
        first = self._states[0]
        if self._in_place:
            held = tensors(self._model)
            odd = [name for name in first if name not in held or not _alike(held[name], first[name])]
            if odd:
                raise EvaluationError(
                    f"the model's tensors {quoted(odd)} have another shape, dtype or device than before; evaluate "
                    "must not convert or move the model that it is given: copy it first"
                )
        else:
            held = {name: torch.empty_like(tensor) for name, tensor in first.items()}
        with torch.no_grad():
            self._write(held, weights)
            if not self._in_place:
                # The model's own state dict adds the entries that are not tensors, without which a strict load fails.
                self._model.load_state_dict({**self._model.state_dict(), **held})
        forget_caches(self._model)
        self._model.zero_grad()
        return self._model.eval()

    def _write(self, held: Mapping[str, Tensor], weights: Sequence[float]) -> None:
        ends = [i for i, weight in enumerate(weights) if weight]
        omega = self._angle(ends[0], ends[1]) if self._arc and len(ends) == 2 else 0.0
        for name in self._states[0]:
            if omega and name in self._arc:
                a, b = (self._states[i][name] for i in ends)
                arc_into(held[name], a, b, weights[ends[1]], omega)
            else:
                mean_into(held[name], [state[name] for state in self._states], weights)

    def _angle(self, i: int, j: int) -> float:
        if (i, j) not in self._angles:
            self._angles[i, j] = angle(self._states[i], self._states[j], self._arc)
        return self._angles[i, j]

    def _check(self, models: Sequence[nn.Module]) -> None:
        check_same_architectures(self._states)
        check_has_mean(models[0])
        two = len(self._states) == 2
        for i, state in enumerate(self._states):
            try:
                check_same_indices(self._states[0], state)
            except ArchitectureError as error:
                raise error if two else ArchitectureError(f"between model 0 (A) and model {i} (B): {error}") from error
            check_finite(state, f"model {'AB'[i]}" if two else f"model {i}")

    def _check_loaded(self, i: int, model: nn.Module) -> None:
        a, b = ("model A", "model B") if len(self._states) == 2 else ("model 0", f"model {i}")
        state, loaded = self._states[i], tensors(self._model)
        changed = [name for name in state if interpolates(state[name]) and not torch.equal(loaded[name], state[name])]
        if changed:
            raise ArchitectureError(
                f"a copy of {a} does not hold the values of {quoted(changed)} in {b} after loading them: these share "
                f"memory with other tensors in {a} (tied weights) but not in {b}. Tie the same weights in both."
            )
        buffers, held = dict(model.named_buffers()), dict(self._model.named_buffers())
        both = [name for name in buffers if name in held and name not in state and _alike(buffers[name], held[name])]
        other = [name for name in both if not torch.allclose(held[name], buffers[name], 0.0, 0.0, equal_nan=True)]
        if other:
            raise ArchitectureError(
                f"a copy of {a} does not hold the buffers {quoted(other)} of {b} after loading its state dict, which "
                "lacks them (persistent=False), so that the path would not end at it. Make them persistent, or equal"
            )


def walk(
    models: Sequence[nn.Module],
    stops: Sequence[Stop],
    evaluate: Evaluate,
    *,
    route: Route,
    renormalizer: Renormalizer | None,
    journal: Callable[[], Journal] | None,
    progress: bool,
) -> dict[str, tuple[float, ...]]:
    """Evaluate the models at some points, and return the values of each metric.

    Args:
        models: See :class:`Walker`.
        stops: The points.
        evaluate: A function model -> dict of metrics.
        route: See :class:`Walker`.
        renormalizer: What is done to the model at every point before it is evaluated.
        journal: Opens a file where finished points are kept. Points that are in it are not evaluated again.
        progress: Whether to show a progress bar.

    Raises:
        EvaluationError: If ``evaluate`` returns something other than finite numbers by name, or other names at some
            points; the message says at which.
        SpecError: If there is no such route.
    """
    if route not in ROUTES:
        raise SpecError(f"there is no path '{route}'; choose from {quoted(ROUTES)}")
    measure = measuring(evaluate)
    walker = Walker(models, route)
    kept = None if journal is None else journal()
    rows = [] if kept is None else kept.rows[: len(stops)]
    finish = renormalizer.bind(models) if renormalizer is not None and len(rows) < len(stops) else None
    left = stops[len(rows) :]
    for stop in tqdm(left, "interpolate", len(stops), initial=len(rows), unit="point", disable=not progress):
        try:
            point = walker.to(stop.weights)
            if finish is not None:
                point = finish(point, stop.weights).eval()
            row = numbers(measure(point))
        except EvaluationError as error:
            raise EvaluationError(f"at {stop.place}: {error}") from error
        if rows and row.keys() != rows[0].keys():
            raise EvaluationError(
                f"evaluate returned the metrics {quoted(row)} at {stop.place}, but {quoted(rows[0])} at "
                f"{stops[0].place}; return the same metrics for every model"
            )
        if kept is not None:
            kept.append(row)
        rows.append(row)
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def measuring(evaluate: Evaluate) -> Evaluate:
    """Return a function that measures one model after another, on the same data if it is an Evaluator.

    Raises:
        EvaluationError: If it is no function, such as a loader without an Evaluator around it.

    Example:
        >>> measuring([(torch.zeros(1, 2), torch.tensor([0]))])
        Traceback (most recent call last):
        autoperm.errors.EvaluationError: evaluate is a list, but must be a function model -> dict of metrics; ...
    """
    if not callable(evaluate) or isinstance(evaluate, nn.Module):
        raise EvaluationError(
            f"evaluate is a {type(evaluate).__name__}, but must be a function model -> dict of metrics; "
            "give Evaluator(loader)"
        )
    return evaluate.same_data() if isinstance(evaluate, Evaluator) else evaluate


def better(evaluate: Evaluate, higher_is_better: Collection[str] | None) -> tuple[str, ...]:
    """Return the names of the metrics for which more is better: those given, else what ``evaluate`` says.

    Raises:
        SpecError: If a string is given, whose letters would be taken for names.

    Example:
        >>> better(Evaluator([]), None), better(lambda model: {"score": 1.0}, ["score"])
        (('accuracy',), ('score',))
    """
    if isinstance(higher_is_better, str):
        raise SpecError(f"higher_is_better is the string '{higher_is_better}'; give a tuple: ('{higher_is_better}',)")
    if higher_is_better is None:
        higher_is_better = getattr(evaluate, "higher_is_better", ("accuracy",))
    return tuple(higher_is_better)


def _only_copies(model: nn.Module) -> bool:
    """Whether loading a state dict only copies tensors into the model's own, so that they may be written in place."""
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        return False
    for module in model.modules():
        if not type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules."):
            return False
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return False
    own = {_place(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return all(_place(tensor) in own for tensor in tensors(model).values())


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.device == y.device


def numbers(metrics: object) -> dict[str, float]:
    """Check what a user's function returned, and convert it to plain numbers.

    Raises:
        EvaluationError: If it is anything but a dictionary of finite numbers by name.

    Example:
        >>> numbers({"loss": torch.tensor(0.5), "samples": 3})
        {'loss': 0.5, 'samples': 3.0}
    """
    if not is_mapping(metrics):
        raise EvaluationError(
            f"evaluate returned {_short(metrics)}, but must return a dictionary of numbers, such as {{'loss': 0.5}}"
        )
    if not metrics:
        raise EvaluationError("evaluate returned an empty dictionary; return at least one metric, such as 'loss'")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise EvaluationError(f"evaluate returned a metric named {name!r}; the name must be a string")
        single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
        if not single and not isinstance(value, Real):
            raise EvaluationError(f"metric '{name}' is {_short(value)}; it must be a number, or a tensor of one")
        found[name] = checked(name, float(value.detach() if isinstance(value, Tensor) else value))
    return found


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
