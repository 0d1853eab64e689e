"""One run of a model on candidate inputs: what went wrong, where, and which parameters took part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..trace import quiet
from .layers import accepted

_DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class Feed:
    """A layer, what it was fed, and the inputs (by their place) which that was computed from."""

    layer: nn.Module
    shape: tuple[int, ...]
    floating: bool
    inputs: frozenset[int]


@dataclass(frozen=True)
class Trial:
    """What a run told.

    Attributes:
        error: what the model raised; None if it ran to its end.
        used: the parameters that took part, by id.
        fault: the layer inside which the run broke off.
        lookups: the tables of embeddings that were read.
    """

    error: Exception | None
    used: frozenset[int]
    fault: Feed | None = None
    lookups: tuple[Feed, ...] = ()

    @property
    def problem(self) -> str:
        """One short line."""
        if self.error is None:
            return "runs"
        lines = str(self.error).strip().splitlines()
        return f"{type(self.error).__name__}: {lines[0][:120] if lines else ''}"


class Rehearsal:
    """A copy of a model to try inputs on."""

    def __init__(self, model: nn.Module) -> None:
        """Take over a copy: hooks are put on its layers."""
        self.model = model
        self.parameters = {id(parameter) for parameter in model.parameters()}
        self._inside: list[tuple[nn.Module, Tensor]] = []
        self._lookups: list[tuple[nn.Module, Tensor]] = []
        for layer in model.modules():
            if accepted(layer) is not None:
                layer.register_forward_pre_hook(self._enter, with_kwargs=True)
                layer.register_forward_hook(self._leave)

    @property
    def has_values(self) -> bool:
        """Whether the model can run for real."""
        return not any(tensor.device.type == "meta" for tensor in self.model.parameters())

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, real: bool = False) -> Trial:
        """Run under fake tensors, and for real only where what happens next depends on values, or if asked to."""
        trial = self._run(args, kwargs, fake=not real)
        if not isinstance(trial.error, _DATA_DEPENDENT):
            return trial
        # Without values the tracer is to say what it makes of the model.
        return self._run(args, kwargs, fake=False) if self.has_values else Trial(None, trial.used)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, fake: bool) -> Trial:
        self._inside.clear()
        error = None
        watch = _Watch(self.parameters)
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                if fake:
                    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                        args, kwargs = _map(mode.from_tensor, args), _map(mode.from_tensor, kwargs)
                        watch.follow([*args, *kwargs.values()])
                        with watch:
                            self.model(*args, **kwargs)
                else:
                    watch.follow([*args, *kwargs.values()])
                    with watch:
                        self.model(*args, **kwargs)
            except Exception as raised:  # a candidate may fail in any way
                error = raised

        def feed(layer: nn.Module, tensor: Tensor) -> Feed:
            sources = watch.sources.get(id(tensor), frozenset())
            return Feed(layer, tuple(tensor.shape), tensor.is_floating_point(), sources)

        fault = feed(*self._inside[-1]) if error is not None and self._inside else None
        lookups = tuple(feed(layer, tensor) for layer, tensor in self._lookups)
        self._inside.clear()
        self._lookups.clear()
        return Trial(error, frozenset(watch.used), fault, lookups)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fed = next((value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), torch.empty(0))
        self._inside.append((layer, fed))
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            self._lookups.append((layer, fed))

    def _leave(self, layer: nn.Module, args: object, output: object) -> None:
        del self._inside[next(i for i, (inside, _) in enumerate(self._inside) if inside is layer) :]


def _map(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, item) for item in value)
    return value


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which parameters operations read, and which inputs each tensor was computed from."""

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = parameters
        self.used: set[int] = set()
        self.sources: dict[int, frozenset[int]] = {}
        self._alive: list[Tensor] = []  # an id is good for as long as its tensor lives

    def follow(self, inputs: list[Any]) -> None:
        for index, value in enumerate(inputs):
            for leaf in tree_leaves(value):
                self._note(leaf, frozenset([index]))

    def _note(self, value: Any, sources: frozenset[int]) -> None:
        if isinstance(value, Tensor) and sources:
            self.sources[id(value)] = self.sources.get(id(value), frozenset()) | sources
            self._alive.append(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sources: frozenset[int] = frozenset()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                if id(leaf) in self.parameters:
                    self.used.add(id(leaf))
                sources |= self.sources.get(id(leaf), frozenset())
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._note(leaf, sources)
        return result
