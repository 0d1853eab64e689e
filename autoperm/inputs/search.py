"""The search: candidates in a sensible order, each mended by what its failure says.

First come the candidates that the model itself speaks for: example inputs that it carries, its configuration, the size
that it was trained on. (A library's own dummy inputs are the same for all its models and its configuration is each
model's own, so a configuration comes before them.) Then come those that its layers suggest. A candidate that fails is
mended where it broke: by the inputs that the message asks for, or by what the layer takes that was fed in vain. One
that runs is filled up with optional inputs for as long as more parameters take part.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..copies import copy_model
from ..errors import TraceError
from ..trace import describe_inputs
from .customs import CUSTOMS, MAIN, SCALES, Scale
from .facts import Facts
from .layers import BATCH, accepted, reshaped
from .sketch import Sketch
from .trial import Feed, Rehearsal, Trial

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Candidate = dict[str, Any]
"""Inputs by name: sketches, or values as they are."""

_MOST_TRIALS = 120
_MOST_MENDS = 24
_MOST_REAL_TRIALS = 4


def find_inputs(model: nn.Module) -> Inputs:
    """Find inputs that a model runs on.

    Returns:
        Positional inputs and inputs by name, on the model's device and in its precision, the same in every run.

    Raises:
        TraceError: if there are none; the message shows what was tried.

    Example:
        >>> class Scores(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.users, self.items = nn.Embedding(9, 4), nn.Linear(7, 4)
        ...     def forward(self, user, item):
        ...         return (self.users(user) * self.items(item)).sum(-1)
        >>> (user, item), _ = find_inputs(Scores())
        >>> user.shape, item.shape
        (torch.Size([2]), torch.Size([2, 7]))
    """
    return _Search(model).run()


class _Search:
    """The state of one search."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.rehearsal = Rehearsal(copy_model(model, share_parameters=True).eval())
        self.model = self.rehearsal.model
        self.facts = Facts(self.model)
        self.scale = SCALES[0]
        self.tried: dict[str, str] = {}
        self.seen: set[Any] = set()
        self.real_trials = _MOST_REAL_TRIALS
        self.batch = BATCH
        floating = (tensor for tensor in self.model.parameters() if tensor.is_floating_point())
        self.like = next(floating, torch.empty(0))
        kinds = inspect.Parameter
        parameters = inspect.signature(self.model.forward).parameters.values()
        self.optional = {p.name for p in parameters if p.default is not kinds.empty or p.kind is kinds.KEYWORD_ONLY}
        self.empty = [p.name for p in parameters if p.default is None]
        self.open = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        variadic = (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
        self.required = [p.name for p in parameters if p.kind not in variadic and p.default is kinds.empty]
        self.named = {p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY}
        if not self.required and any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
            self.required = [next(p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL)]

    def run(self) -> Inputs:
        for self.batch in (BATCH, 1):  # some models take one example at a time
            for candidate in self._starts():
                found = self._mend(candidate)
                if found is not None:
                    return self._draw(self._fill(*found))
                if len(self.seen) >= _MOST_TRIALS:
                    break
        raise TraceError(self._report())

    def _report(self) -> str:
        lines = [f"  {what}: {problem}" for what, problem in self.tried.items()]
        more = [f"  ... and {len(lines) - 12} more"] if len(lines) > 12 else []
        listing = "\n".join(lines[:12] + more) or "  nothing: it has no layer whose inputs can be guessed"
        names = self.required or ["x"]
        some = f"{names[0]}," if len(names) == 1 else ", ".join(names)
        by_name = ", ".join(f"{name!r}: {name}" for name in names)
        return (
            f"no example inputs were found that {self.name} runs on. Tried:\n{listing}\n"
            f"Pass what its forward takes: example_inputs=({some}) or example_inputs={{{by_name}}}"
        )

    # --- where to begin

    def _starts(self) -> Iterator[Candidate]:
        yield from self._given("example_input_array")
        if self.facts.configs:
            yield from self._customary()
        yield from self._given("dummy_inputs")
        size = self.facts.get("input_size")
        if isinstance(size, Sequence) and all(isinstance(n, int) for n in size) and self.required:
            yield self._with_constants({self.required[0]: Sketch((BATCH, *size))})
        if not self.facts.configs:
            yield from self._customary()
        yield from self._guessed()

    def _given(self, name: str) -> Iterator[Candidate]:
        """Yield the inputs that a model carries."""
        try:
            value = getattr(self.model, name, None)
        except Exception:  # a property of the user's that fails is no answer
            return
        if isinstance(value, Tensor):
            value = (value,)
        if isinstance(value, Mapping) and value:
            yield self._with_constants(dict(value))
        elif isinstance(value, tuple) and value:
            names = [*self.required, *(name for name in self.optional if name not in self.named)]
            yield dict(zip(names, value, strict=False))

    def _customary(self) -> Iterator[Candidate]:
        """Yield inputs whose names tell what they are."""
        names = list(self.required)
        main = getattr(self.model, "main_input_name", None)
        if isinstance(main, str) and main in self.optional and not any(name in CUSTOMS for name in names):
            names.append(main)
        if self.facts.get("is_encoder_decoder") and "decoder_input_ids" in self.optional:
            names.append("decoder_input_ids")
        if not names:
            names = [name for name in MAIN if name in self.optional][:1]
        if not names or not any(name in CUSTOMS for name in names):
            return
        for scale in SCALES:
            self.scale = scale
            choices = [self._choices(name, scale)[:4] for name in dict.fromkeys(names)]
            if not all(choices):
                return
            ranks = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=sum)
            for rank in ranks[:12]:
                picked = [choice[i] for choice, i in zip(choices, rank, strict=True)]
                yield self._with_constants(dict(zip(dict.fromkeys(names), picked, strict=True)))
        self.scale = SCALES[0]
        every = {name: self._choices(name, self.scale) for name in CUSTOMS if name in {*self.required, *self.optional}}
        yield self._with_constants({name: choices[0] for name, choices in every.items() if choices})

    def _guessed(self) -> Iterator[Candidate]:
        """Yield inputs as the first layer takes them, or else as wide as some parameter is."""
        names = self.required or [name for name in self.optional][:1]
        for sketch in self._layers() if names else []:
            yield self._with_constants(dict.fromkeys(names, sketch))

    def _choices(self, name: str, scale: Scale) -> list[Sketch]:
        made = CUSTOMS[name](self.facts, scale) if name in CUSTOMS else []
        return made if made and self.facts.configs else [*made, *self._layers()[:3]]

    def _layers(self, among: Set[int] | None = None) -> list[Sketch]:
        """List what the first layer takes; the first of those that have some of the given parameters."""
        for layer in self.model.modules():
            sketches = accepted(layer)
            if sketches is not None and (among is None or any(id(p) in among for p in layer.parameters())):
                return sketches
        widths = dict.fromkeys(n for p in self.model.parameters() if p.ndim > 1 for n in reversed(p.shape))
        return [Sketch(shape) for n in list(widths)[:8] for shape in [(BATCH, n), (BATCH, 5, n)]]

    def _with_constants(self, candidate: Candidate) -> Candidate:
        """Ask for no cache of what was computed: it would be one more output, and pinned."""
        known = "use_cache" in self.optional or (self.open and self.facts.get("use_cache") is not None)
        return {**candidate, "use_cache": False} if known else candidate

    # --- what to do with a candidate

    def _mend(self, candidate: Candidate) -> tuple[Candidate, Trial] | None:
        """Try a candidate, and what its failures suggest instead."""
        pending = [candidate]
        for _ in range(_MOST_MENDS):
            if not pending:
                return None
            candidate = pending.pop()
            trial = self._try(candidate)
            if trial is None:
                continue
            if trial.error is None:
                return candidate | self._within_tables(candidate, trial), trial
            pending.extend(reversed(list(self._mended(candidate, trial))))
        return None

    def _try(self, candidate: Candidate) -> Trial | None:
        """Run a candidate; None if it was tried already."""
        args, kwargs = self._draw(candidate)
        key = tuple((name, value if isinstance(value, Sketch) else id(value)) for name, value in candidate.items())
        if (self.batch, key) in self.seen:
            return None
        self.seen.add((self.batch, key))
        trial = self.rehearsal.run(args, kwargs)
        if trial.error is not None and self.real_trials and self.rehearsal.has_values:
            # Some operations, and some models, take no fake tensors.
            self.real_trials -= 1
            real = self.rehearsal.run(args, kwargs, real=True)
            trial = real if real.error is None else trial
        self.tried[describe_inputs(args, kwargs)] = trial.problem
        return trial

    def _draw(self, candidate: Candidate) -> Inputs:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for seed, (name, value) in enumerate(candidate.items()):
            if isinstance(value, Sketch):
                value = value.of_batch(self.batch).draw(seed, self.like.device, self.like.dtype)
            positional = name in self.required and name not in self.named and len(args) == self.required.index(name)
            if positional:
                args.append(value)
            else:
                kwargs[name] = value
        return tuple(args), kwargs

    def _mended(self, candidate: Candidate, trial: Trial) -> Iterator[Candidate]:
        """Yield other candidates, after what went wrong with one."""
        message = str(trial.error)
        words = re.findall(r"\w+", message)
        if "unexpected keyword" in message:
            refused = [name for name in candidate if name in words]
            if refused:
                yield {name: value for name, value in candidate.items() if name not in refused}
                return
        asked = [name for name in dict.fromkeys(words) if name in CUSTOMS and self._lacks(candidate, name)]
        for name in asked:
            for sketch in self._choices(name, self.scale)[:2]:
                yield {**candidate, name: sketch}
        lower = self._within_tables(candidate, trial) if isinstance(trial.error, IndexError) else {}
        if lower:
            yield candidate | lower
        if trial.fault is not None:
            yield from self._refed(candidate, trial.fault)
        if not asked and self.facts.configs:
            lacking = [name for name in MAIN if self._lacks(candidate, name)]
            for name in lacking[:2]:
                for sketch in self._choices(name, self.scale)[:4]:
                    yield {**candidate, name: sketch}

    def _within_tables(self, candidate: Candidate, trial: Trial) -> Candidate:
        """Return the inputs with indices past the end of a table, lowered to lie in it: fake runs do not see them."""
        names = list(candidate)
        lower: dict[str, Sketch] = {}
        for lookup in trial.lookups:
            for name in [names[i] for i in lookup.inputs if i < len(names)]:
                sketch = lower.get(name, candidate[name])
                size = int(getattr(lookup.layer, "num_embeddings", 0))
                if isinstance(sketch, Sketch) and sketch.shape == lookup.shape and sketch.high > size:
                    lower[name] = sketch.below(size)
        return lower

    def _lacks(self, candidate: Candidate, name: str) -> bool:
        return name in self.optional and name not in candidate

    def _refed(self, candidate: Candidate, fault: Feed) -> Iterator[Candidate]:
        """Yield candidates that feed a layer what it takes."""
        names = [list(candidate)[i] for i in sorted(fault.inputs) if i < len(candidate)]
        names = [name for name in names if isinstance(candidate[name], Sketch)]
        wanted = accepted(fault.layer) or []
        if len(names) > 1 and isinstance(fault.layer, nn.Linear):  # joined before the layer: each may bring a share
            share, rest = divmod(fault.layer.in_features, len(names))
            widths = [share] * (len(names) - 1) + [share + rest]
            yield candidate | {n: _as_wide(candidate[n], width) for n, width in zip(names, widths, strict=True)}
        for name in names:
            for sketch in reshaped(candidate[name], fault.layer, fault.shape):
                yield {**candidate, name: sketch}
        if len(names) == 1:
            for sketch in wanted[:4] + wanted[-1:]:
                yield {**candidate, names[0]: sketch}

    def _fill(self, candidate: Candidate, trial: Trial) -> Candidate:
        """Add optional inputs for as long as more parameters take part."""
        customary = [name for name in dict.fromkeys((*MAIN, *CUSTOMS)) if not name.endswith(("mask", "position_ids"))]
        own = [] if self.facts.configs else [name for name in self.empty if name not in CUSTOMS]
        for name in [name for name in (*customary, *own) if self._lacks(candidate, name)]:
            idle = self.rehearsal.parameters - trial.used
            if not idle:
                break
            choices = self._choices(name, self.scale) if name in CUSTOMS else self._layers(idle)
            for sketch in choices[:3]:
                fuller = {**candidate, name: sketch}
                found = self._try(fuller)
                if found is not None and found.error is None and found.used > trial.used:
                    candidate, trial = fuller | self._within_tables(fuller, found), found
                    break
        return candidate


def _as_wide(sketch: Sketch, width: int) -> Sketch:
    return replace(sketch, shape=(*sketch.shape[:-1], width))
