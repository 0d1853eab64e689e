"""What autoperm does on one model of the zoo, as a record that JSON can hold. ``coverage.py`` runs it, once a process.

Soundness is judged on weights that hide nothing: norms, biases and layers that start at zero get random values first,
or a permutation that is wrong would pass. Group elements are drawn here, not by the code that is judged.
"""

from __future__ import annotations

import importlib
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from autoperm.copies import copy_model, forget_caches
from autoperm.discover import infer
from autoperm.equivalence import check_comparable, difference, in_float64, outputs
from autoperm.errors import TraceError
from autoperm.permutation import Permutation
from autoperm.spec import Factor, PermutationSpec
from autoperm.trace import trace

Record = dict[str, Any]

DRAWS = 3
BROKEN = 8
"""How many ties are broken, to see what a wrong permutation does."""

ROUNDING = 1e-8
"""What float64 may lose on the way through a deep network, relative to the output."""

APART = 1e-3
"""Where a model rounds to float32 inside, a true symmetry must stay this far below a wrong one."""


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give a model weights of which none is zero or one by construction; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            scale = 0.3
            if parameter.ndim > 1:
                fan_in = parameter.numel() // parameter.shape[0]
                scale = max(float(parameter.std()), fan_in**-0.5) if parameter.numel() > 1 else 0.3
            parameter.add_(scale * noise(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(1 + 0.5 * noise(buffer).tanh())
    return model


# --- soundness


class _Narrow(TorchDispatchMode):
    """Notice whether a model rounds to less than float64 on its way."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                self.seen = self.seen or value.ndim > 0
        return result


class _With(nn.Module):
    """A model with some of its tensors replaced."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.state = model, dict(state)

    def forward(self, *inputs: Any) -> Any:  # names of one tensor stay tied
        return functional_call(self.model, self.state, inputs)


@dataclass
class Judge:
    """A model, the function it computes, and how far another one is from it."""

    model: nn.Module
    inputs: tuple[Any, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        with _Narrow() as narrow:
            self.reference = self.compute(copy_model(self.model))
        self.narrow = narrow.seen or self.dtype != torch.float64
        check_comparable(self.reference)

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Any]) -> Judge:
        """Judge in float64 if the model runs in it, else in its own precision."""
        try:
            return cls(copy_model(model).double(), tuple(in_float64(inputs)), torch.float64)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return cls(model, tuple(inputs), torch.float32)

    def error_with(self, state: Mapping[str, Tensor]) -> float:
        """Return the difference that other tensors make, in a model that is not copied for it."""
        forget_caches(self.model)
        try:
            return self.error(_With(self.model, state))
        finally:
            forget_caches(self.model)

    def compute(self, model: nn.Module) -> list[Tensor]:
        """Run a model; one that draws random numbers draws the same each time."""
        torch.manual_seed(0)
        return outputs(model, self.inputs)

    def error(self, model: nn.Module) -> float:
        """Return the largest difference from the reference, relative to its largest value."""
        return difference(self.reference, self.compute(model))


def draw(spec: PermutationSpec, factors: Sequence[Factor], generator: torch.Generator) -> Permutation:
    """Draw a group element that moves only these factors, each of them at least somewhere."""
    indices = {}
    for factor in factors:
        shape = [*(spec.factors[name].size for name in factor.over), factor.size]
        ordered = torch.arange(factor.size).expand(shape)
        index = ordered
        while torch.equal(index, ordered):  # of two units, half the permutations move nothing
            index = torch.rand(shape, generator=generator).argsort(-1)
        indices[factor.name] = index
    return Permutation(spec, indices)


def broken(spec: PermutationSpec, factor: Factor, judge: Judge, generator: torch.Generator) -> float | None:
    """Permute one of the tensors that carry a factor and not the others: what difference a wrong permutation makes."""
    moved = alone(spec, factor, judge, generator)
    if len(moved) < 2:
        return None
    chosen = list(moved)[int(torch.randint(len(moved), (1,), generator=generator))]
    return judge.error_with({chosen: moved[chosen]})


def alone(spec: PermutationSpec, factor: Factor, judge: Judge, generator: torch.Generator) -> dict[str, Tensor]:
    """Permute one factor, and return the tensors that this changes, each under its first name."""
    state = judge.model.state_dict()
    moved = draw(spec, [factor], generator).apply(state)
    return {name: tensor for name, tensor in moved.items() if tensor is not state[name] and name not in spec.tied}


def soundness(spec: PermutationSpec, model: nn.Module, inputs: Sequence[Any], limit_s: float) -> Record:
    """Compare a model with its permuted self: all factors at once, then each alone for as long as the limit allows."""
    judge = Judge.of(model, inputs)
    generator = torch.Generator().manual_seed(0)
    free = list(spec.free)
    random.Random(0).shuffle(free)
    error = max((judge.error(draw(spec, free, generator).apply(judge.model)) for _ in range(DRAWS)), default=0.0)
    wrong = [found for factor in free[:BROKEN] if (found := broken(spec, factor, judge, generator)) is not None]
    typical = statistics.median(wrong) if wrong else None

    start, done, guilty, ratio = time.perf_counter(), 0, [], 0.0
    for factor in free:
        if time.perf_counter() - start > limit_s:
            break
        found = judge.error_with(alone(spec, factor, judge, generator))
        done += 1
        error = max(error, found)
        allowed = ROUNDING
        if judge.narrow and found > ROUNDING:
            # Rounding has no fixed size, so the measure is what this factor does where it is permuted wrongly.
            reference = [broken(spec, factor, judge, generator) for _ in range(3)]
            worst = max((value for value in reference if value is not None), default=typical or 0.0)
            allowed = APART * worst
            ratio = max(ratio, found / worst if worst else float("inf"))
        if not found <= allowed:
            guilty.append(factor.name)
    if judge.error(copy_model(judge.model)) != 0.0:
        raise RuntimeError("the model does not compute the same again, so nothing that was compared means anything")
    bound = ROUNDING if not judge.narrow else max(ROUNDING, APART * (typical or 0.0))
    return {
        "sound": not guilty and bool(error <= bound),
        "error": error,
        "wrong": typical,
        "precision": str(judge.dtype).removeprefix("torch."),
        "narrow": judge.narrow,
        "alone": [done, len(free)],
        "guilty": guilty[:5],
        "narrow_ratio": ratio,
    }


# --- one model


class OutOfTime(Exception):
    """A step of the measurement took longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block when the time is up."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def missed(spec: PermutationSpec, model: nn.Module, inputs: Sequence[Any], limit_s: float) -> Record | None:
    """Ask the probe which pinned axes could move; None where this autoperm has no probe."""
    try:
        probe: Callable[..., Any] = importlib.import_module("autoperm.probe").probe
    except ImportError:
        return None
    try:
        with at_most(3 * limit_s):  # it stops by itself between two steps; this is for a step that does not end
            result = probe(model, spec, inputs, seconds=limit_s)
    except OutOfTime as error:
        return {"problem": str(error)}
    except Exception as error:  # the probe is a part of what is measured: its failure is a result
        return {"problem": describe(error)}
    return {
        "missed": [str(found).splitlines() for found in result.missed[:20]],
        "misses": len(result.missed),
        "missed_axes": len(result.missed_axes),
        "axes": result.axes,
        "checked": result.checked,
        "unexercised": len(result.unexercised),
        "unreached": result.unreached,
    }


def describe(error: BaseException) -> str:
    """Write an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def pins(spec: PermutationSpec) -> Record:
    """Count the axes of parameters that are pinned, in whole or in part, by reason."""
    reasons = [reason for axes in spec.reasons.values() for reason in axes if reason]
    count = Counter(reason.partition(", ")[0] for reason in reasons)
    axes = sum(len(shape) for name, shape in spec.shapes.items() if name not in spec.tied)
    return {"axes": axes, "pinned": len(reasons), "reasons": count.most_common(12)}


def how_traced(spec: PermutationSpec) -> str:
    """Tell from a specification's notes which tracer made its graph."""
    return "recorded" if any("record" in note for note in spec.notes) else "export"


def measure(zoo: ModuleType, suite: str, name: str, limit_s: float) -> Record:
    """Trace, discover, judge and probe one model."""
    torch.set_num_threads(1)
    trace(nn.Linear(2, 2), (torch.zeros(1, 2),))  # the first trace in a process pays for torch's own start
    entry = zoo.get(suite, name)
    model = randomise(zoo.as_module(entry.builder(), entry.call_fn))
    inputs = entry.example_inputs_fn()
    record: Record = {"parameters": sum(prod(p.shape) for p in model.parameters())}
    start = time.perf_counter()
    try:
        graph = trace(model, inputs)
    except TraceError as error:
        return {**record, "status": "not traced", "problem": str(error)[:1000]}
    record["trace_s"] = time.perf_counter() - start
    start = time.perf_counter()
    spec = infer(graph)
    record["discover_s"] = time.perf_counter() - start
    record |= {
        "status": "traced",
        "nodes": len(graph.calls),
        "traced": how_traced(spec),
        "notes": list(spec.notes),
        "log10_order": spec.log10_order,
        "groups": len(spec.groups),
        "factors": len(spec.free),
        "pins": pins(spec),
        "unknown": sorted({text.splitlines()[0] for text in spec.unknown}),
    }
    try:
        record["soundness"] = soundness(spec, model, inputs, limit_s)
    except Exception as error:  # whatever the model or a permutation does: the row says it
        record["soundness"] = {"sound": None, "problem": describe(error)}
    record["probe"] = missed(spec, model, inputs, limit_s)
    return record
