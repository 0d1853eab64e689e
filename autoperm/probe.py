"""Is a specification complete? Pinned axes are permuted after all, and the outputs compared.

What discovery calls a symmetry is one; what it does not call one may only be something that it did not understand. The
probe tells: it takes the axes that are pinned, one class of axes that are tied to each other at a time, exchanges two
units of the class, and runs the model. Outputs that do not change show a symmetry that the specification lacks, *if*
the two units have different weights and take part in what the model computes. So the model's weights are drawn at
random, and where the outputs did not change the weights of the two units are changed a little: now the outputs must
change.

Two more ways in which a specification can lack something are looked at. An operation without a rule pins what goes in
and what comes out as two classes, of which none is free alone: so classes of one size that are pinned for reasons of
the same kind are permuted together too. And a free factor may lack something that it varies over: so it is permuted at
one position only of each factor that stands beside it everywhere.

The probe is evidence, not proof. It does not see a symmetry that only some other units have, that moves whole blocks
of units, or that needs classes to move together that are pinned for different reasons.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .copies import copy_model, forget_caches
from .equivalence import check_comparable, difference, in_float64, in_native_precision, outputs
from .layout import Cell, cells
from .report import table
from .signature import Interleaving, Name, Pinned, Product, Sum, Term
from .spec import Factor, PermutationSpec
from .state import tensors

_UNUSED = "the traced path never uses"
_TOLERANCE = 1e-6
_STEP = 1e-2
"""How much the weights of two units are changed to see that they matter, relative to their size: too little to wake a
unit that is dead for these inputs."""
_MANY = 4
"""Of more classes that are pinned for reasons of one kind, all are permuted together, but not every two of them."""

Places = list[tuple[Tensor, int]]
"""Views of tensors, each with the dimension in which the units of a class stand."""


@dataclass(frozen=True, slots=True)
class Tied:
    """Parameter axes, or parts of them, that can only be permuted together.

    Attributes:
        axes: pairs of a tensor's name and an axis.
        size: the number of units.
        reason: why they are pinned; empty for a factor that is free.
    """

    axes: tuple[tuple[str, int], ...]
    size: int
    reason: str = ""

    def __str__(self) -> str:
        shown = ", ".join(f"{tensor}[{axis}]" for tensor, axis in self.axes[:4])
        return shown + (f" and {len(self.axes) - 4} more" if len(self.axes) > 4 else "")


@dataclass(frozen=True, slots=True)
class Missed:
    """A symmetry that a specification lacks.

    Attributes:
        tied: what was permuted, all at once.
        units: the two units that were exchanged.
        whole: whether a shift of all units leaves the outputs as they are, too: then all are free, not just some.
        effect: by how much the exchange changes the outputs, relative to the largest.
        sensitivity: by how much other weights for the two units change them.
        over: None for what is pinned; for a free factor, what it could vary over and does not.
    """

    tied: tuple[Tied, ...]
    units: tuple[int, int]
    whole: bool
    effect: float
    sensitivity: float
    over: Tied | None = None

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """The parameter axes that could be permuted."""
        return tuple(dict.fromkeys(axis for tied in self.tied for axis in tied.axes))

    def __str__(self) -> str:
        what = " with ".join(map(str, self.tied))
        which = f"all {self.tied[0].size} units" if self.whole else f"units {self.units[0]} and {self.units[1]}"
        if self.over is not None:
            why = f"could be permuted in another way for each position of {self.over}"
        else:
            why = f"pinned: {'; '.join(dict.fromkeys(tied.reason for tied in self.tied))}"
        seen = f"permuting {which} changes the outputs by {self.effect:.0e}, changing them by {self.sensitivity:.0e}"
        return f"{what}\n    {why}\n    {seen}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What :func:`probe` found.

    Attributes:
        checked: how many classes of axes were permuted, alone or together.
        missed: symmetries that the specification lacks.
        unexercised: classes of which no two units matter to the outputs for these inputs, or differ in their weights.
        unused: classes of tensors that the traced path never uses, which were not permuted.
        unreached: how many classes were left when the limit or the time was up.
        axes: the number of parameter axes in all, without those of length 1.
        notes: what a reader should know: sentences.
    """

    checked: int
    missed: tuple[Missed, ...]
    unexercised: tuple[Tied, ...]
    unused: tuple[Tied, ...]
    unreached: int
    axes: int
    notes: tuple[str, ...] = ()

    @property
    def missed_axes(self) -> tuple[tuple[str, int], ...]:
        """The parameter axes that are pinned, wholly or in part, and need not be."""
        return tuple(dict.fromkeys(axis for missed in self.missed if missed.over is None for axis in missed.axes))

    @property
    def share(self) -> float:
        """The share of the parameter axes that is missed."""
        return len(self.missed_axes) / max(self.axes, 1)

    def __str__(self) -> str:
        rows = [
            ["permuted:", f"{self.checked} classes of tied axes"],
            ["missed:", f"{len(self.missed)}, on {len(self.missed_axes)} of {self.axes} axes ({self.share:.1%})"],
            ["not exercised:", _listing(self.unexercised)],
            ["never used:", _listing(self.unused)],
            *([["not reached:", f"{self.unreached} classes"]] if self.unreached else []),
        ]
        lines = ["Probe", table(rows), *(f"  note: {note}" for note in self.notes)]
        for missed in self.missed:
            lines += ["", f"  {missed}"]
        if self.missed:
            lines += ["", "  Register a rule for the operation that pins it, or please report this."]
        return "\n".join(lines)


def _listing(classes: Sequence[Tied]) -> str:
    shown = "; ".join(map(str, classes[:3]))
    return f"{len(classes)}" + (f": {shown}" if classes else "") + ("; ..." if len(classes) > 3 else "")


def probe(
    model: nn.Module,
    spec: PermutationSpec,
    inputs: Sequence[Any],
    *,
    randomize: bool = True,
    generator: torch.Generator | int | None = 0,
    limit: int | None = None,
    seconds: float | None = None,
    progress: bool = False,
) -> Probe:
    """Look for symmetries that a specification lacks.

    Args:
        model: a model that the specification is for; it is not changed.
        spec: a discovered specification. One written by hand, or read from a file, does not know which of its pinned
            axes are tied to each other: they are permuted alone, and all of one size together, which finds less.
        inputs: positional inputs; floating-point ones are cast to float64. What they do not exercise is not probed:
            they should be random, and several.
        randomize: draw the weights at random, each parameter in its own scale, so that no two units are alike by
            initialisation. What is all positive stays positive.
        generator: a CPU generator, or a seed for one.
        limit: the largest number of classes to permute; which ones is drawn at random, and each alone.
        seconds: stop after this time.
        progress: show a progress bar.

    Raises:
        TraceError: if the model does not run on the inputs or returns no floating-point tensor.
        SpecError: if the specification is for another model.

    Example:
        >>> from autoperm import discover
        >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 3)
        >>> print(probe(model, discover(model, x), (x,)))
        Probe
          permuted:       2 classes of tied axes
          missed:         0, on 0 of 6 axes (0.0%)
          not exercised:  0
          never used:     0
        >>> by_hand = PermutationSpec.from_patterns({"0.weight": "h! _", "0.bias": "h!", "2.weight": "_ h!"}, model)
        >>> probe(model, by_hand, (x,)).missed_axes
        (('0.weight', 0), ('0.bias', 0), ('2.weight', 1))
    """
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(0 if generator is None else generator)
    state = tensors(model)
    spec.check(state)
    named, reasons = _name_pinned(spec, state)
    bench = _Bench(named, model, inputs, randomize, generator)
    search = _Search(bench, {name: _tied(named, name, reasons) for name in named.factors})
    trials = search.trials()
    if limit is not None and limit < len(trials):
        trials = [trials[i] for i in torch.randperm(len(trials), generator=generator)[:limit].tolist()]
    left = len(search.trials()) - len(trials)
    end = None if seconds is None else time.monotonic() + seconds
    with tqdm(total=len(trials), desc="probe", unit="class", disable=not progress, leave=False) as bar:
        while trials and (end is None or time.monotonic() < end):
            search.run(trials.pop(0))
            bar.update()
        joint = search.joint() if not trials and not left else []
        bar.total += len(joint)
        while joint and (end is None or time.monotonic() < end):
            search.run(joint.pop(0))
            bar.update()
    return Probe(
        search.checked,
        tuple(search.missed),
        tuple(search.unexercised),
        tuple(search.unused),
        left + len(trials) + len(joint),
        sum(n > 1 for name, shape in named.shapes.items() if name not in named.tied for n in shape),
        tuple(bench.notes),
    )


def _tied(named: PermutationSpec, name: str, reasons: Mapping[str, str]) -> Tied:
    factor = named.factors[name]
    return Tied(named.carriers[name], factor.size, reasons.get(name, "") if factor.pinned else "")


# --- the classes


def _name_pinned(spec: PermutationSpec, state: Mapping[str, Tensor]) -> tuple[PermutationSpec, Mapping[str, str]]:
    """Return a specification in which every pinned axis has a name, and for each such name why it is pinned."""
    if spec.inference is not None and spec.inference.spec() == spec:
        return spec.inference.spec(name_pinned=True), spec.inference.reasons()
    factors: dict[str, Factor] = dict(spec.factors)
    known = {state[name].data_ptr() for name in spec.patterns}
    left_out = {n: t for n, t in state.items() if t.is_floating_point() and t.data_ptr() not in known}
    shapes = {**spec.shapes, **{name: tuple(tensor.shape) for name, tensor in left_out.items()}}
    whole = {**spec.patterns, **{name: (Pinned(),) * tensor.ndim for name, tensor in left_out.items()}}

    def rename(term: Term, size: int, place: str) -> Term:
        if isinstance(term, Pinned):
            name = place
            while name in factors:
                name += "'"
            factors[name] = Factor(name, term.size or size, pinned=True)
            return Name(name)
        if isinstance(term, (Product, Sum, Interleaving)):
            return type(term)(tuple(rename(child, 1, place) for child in term.terms))
        return term

    patterns = {
        name: tuple(
            rename(term, size, f"{name}[{axis}]")
            for axis, (term, size) in enumerate(zip(pattern, shapes[name], strict=True))
        )
        for name, pattern in whole.items()
    }
    named = replace(spec, patterns=patterns, shapes=shapes, factors=factors, inference=None)
    return named, {name: "so the specification says" for name in factors}


@dataclass(frozen=True, slots=True)
class _Trial:
    """Factors to permute together; ``over`` says at one position of which factor only."""

    names: tuple[str, ...]
    over: str | None = None


class _Search:
    """Which classes to permute, and what came of it."""

    def __init__(self, bench: _Bench, tied: Mapping[str, Tied]) -> None:
        self.bench, self.tied = bench, tied
        self.checked = 0
        self.missed: list[Missed] = []
        self.unexercised: list[Tied] = []
        self.unused: list[Tied] = []
        self.told: list[str] = []
        for found in tied.values():
            if found.axes and found.size > 1 and found.reason.startswith(_UNUSED):
                self.unused.append(found)

    def trials(self) -> list[_Trial]:
        """Every class of pinned axes, and every free factor with what it could vary over."""
        factors = self.bench.spec.factors
        pinned = [
            _Trial((name,))
            for name, factor in factors.items()
            if factor.pinned and factor.size > 1 and self.tied[name].axes and self.tied[name] not in self.unused
        ]
        free = [_Trial((factor.name,), over) for factor in self.bench.spec.free for over in self._beside(factor)]
        return pinned + free

    def _beside(self, factor: Factor) -> Iterator[str]:
        """Factors that stand once, beside a factor, in every cell of a tensor in which that factor stands."""
        common: set[str] | None = None
        for cell, dim in self.bench.standing[factor.name]:
            own = [n for n, axis in zip(cell.names, cell.axes, strict=True) if axis == cell.axes[dim]]
            here = {n for n in cell.names if n and 1 in (own.count(n), cell.names.count(n))}
            common = here if common is None else common & here
        for name in sorted(common or ()):
            other = self.bench.spec.factors[name]
            related = name == factor.name or name in factor.over or factor.name in other.over
            if not related and other.size > 1:
                yield name

    def joint(self) -> list[_Trial]:
        """Classes that were rightly pinned alone, and may be free together."""
        groups: dict[tuple[int, str], list[str]] = defaultdict(list)
        for name in self.told:
            groups[self.tied[name].size, self.tied[name].reason.partition(":")[0]].append(name)
        found = []
        for together in groups.values():
            if len(together) > 1:
                found.append(_Trial(tuple(together)))
            if 2 < len(together) <= _MANY:
                found += map(_Trial, combinations(together, 2))
        return found

    def run(self, trial: _Trial) -> None:
        """Permute the factors of a trial, and write down what came of it."""
        self.checked += 1
        size = self.bench.spec.factors[trial.names[0]].size
        found = self._judge(trial, self.bench.places(trial), size)
        alone = trial.over is None and len(trial.names) == 1
        if isinstance(found, Missed):
            self.missed.append(found)
        elif found and alone:
            self.told += trial.names
        elif alone:
            self.unexercised.append(self.tied[trial.names[0]])

    def _judge(self, trial: _Trial, places: Places, size: int) -> Missed | bool:
        """Return the symmetry that was missed; else whether anything that was permuted matters to the outputs."""
        bench = self.bench
        for sure in (False, True):
            slopes = bench.places(trial, bench.slopes)
            unit = bench.decisive(places, size) if sure else bench.steepest(slopes, size)
            pair = None if unit is None else _unlike(places, unit, size)
            if pair is None:
                continue
            effect = bench.effect(places, torch.tensor(pair), lambda old, dim: old.flip(dim))
            if effect > bench.tolerance:
                return True
            sensitivity = bench.sensitivity(places, torch.tensor(pair))
            if sensitivity > bench.tolerance:
                allowed = bench.tolerance * min(sensitivity, 1)
                if effect > allowed:
                    return True
                shift = bench.effect(places, torch.arange(size), lambda old, dim: old.roll(1, dim))
                tied = tuple(self.tied[name] for name in trial.names)
                over = self.tied[trial.over] if trial.over else None
                return Missed(tied, pair, shift <= allowed, effect, sensitivity, over)
        return False


def _unlike(places: Places, unit: int, size: int) -> tuple[int, int] | None:
    """Return a unit and another one with different weights, a neighbour if there is one: equal ones say nothing."""
    for step in (1, -1, 2, -2, size // 2):
        other = (unit + step) % size
        for view, dim in places:
            if not torch.equal(view.select(dim, unit), view.select(dim, other)):
                return unit, other
    return None


class _Bench:
    """A copy of the model to try changes on: they are made in place, and taken back."""

    def __init__(
        self,
        spec: PermutationSpec,
        model: nn.Module,
        inputs: Sequence[Any],
        randomize: bool,
        generator: torch.Generator,
    ) -> None:
        self.spec, self.generator = spec, generator
        self.notes: list[str] = []
        self.tolerance = _TOLERANCE
        self.seed = int(torch.randint(2**31, (), generator=generator))
        self.copies = False
        self.model, self.inputs = copy_model(model).double().eval(), in_float64(tuple(inputs))
        try:
            own = self.run()
        except Exception as error:  # anything that the user's forward may raise
            # To verify, sqrt(eps) is allowed; here that would also pass for two neighbours in a smooth table.
            self.tolerance = max(_TOLERANCE, in_native_precision(model, error) ** (4 / 3))
            self.model, self.inputs = copy_model(model).eval(), tuple(inputs)
            self.notes.append("the model does not run in float64; it was compared in its own precision")
            own = self.run()
        check_comparable(own)
        if randomize:
            before = {name: tensor.clone() for name, tensor in tensors(self.model).items()}
            randomize_(self.model, generator)
            if any(not torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(own, self.run(), strict=True)):
                for name, value in tensors(self.model).items():
                    value.copy_(before[name])
                self.notes.append("with random weights the outputs are not finite; the model's own were used")
        self.copies = not difference(self.run(), self.run()) <= self.tolerance
        self.reference = self.run()
        self.state = tensors(self.model)
        self.slopes = self._slopes()
        self.standing: dict[str, list[tuple[Cell, int]]] = defaultdict(list)
        for tensor in spec.patterns:
            if tensor not in spec.tied:
                for cell in cells(spec, tensor):
                    for dim, factor in enumerate(cell.names):
                        if factor is not None:
                            self.standing[factor].append((cell, dim))

    def run(self) -> list[Tensor]:
        """Return the outputs; random numbers are the same in every run."""
        model = copy_model(self.model) if self.copies else self.model
        forget_caches(model)
        with self._same_random_numbers():
            return outputs(model, self.inputs)

    @contextmanager
    def _same_random_numbers(self) -> Iterator[None]:
        devices = {parameter.device for parameter in self.model.parameters() if parameter.device.type == "cuda"}
        with torch.random.fork_rng(list(devices)):
            torch.manual_seed(self.seed)
            yield

    def _slopes(self) -> dict[str, Tensor]:
        """How much the outputs depend on each weight: the gradients of a random combination of them."""
        model = copy_model(self.model)
        leaves = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.is_floating_point() and leaf.is_leaf}
        try:
            for leaf in leaves.values():
                leaf.requires_grad_()
            with torch.enable_grad(), self._same_random_numbers():
                result = outputs(model, self.inputs, gradients=True)
                parts = [(y.real * torch.randn_like(y.real)).nan_to_num(0, 0, 0).sum().cpu() for y in result]
                total = torch.stack([part.double() for part in parts]).sum()
            slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except Exception:  # a model that cannot be differentiated: then pairs are drawn at random
            return {}
        return {name: slope.nan_to_num() for name, slope in zip(leaves, slopes, strict=True) if slope is not None}

    def places(self, trial: _Trial, source: Mapping[str, Tensor] | None = None) -> Places:
        """Return where the units of a trial stand in the model's tensors, or in others of the same shapes."""
        source = self.state if source is None else source
        found: Places = []
        for name in trial.names:
            for cell, dim in self.standing[name]:
                if cell.tensor not in source:
                    continue
                view = cell.view(source[cell.tensor])
                if trial.over is not None:
                    beside = cell.dim(trial.over, dim)
                    view, dim = view.select(beside, 0), dim - (beside < dim)
                found.append((view, dim))
        return found

    def steepest(self, slopes: Places, size: int) -> int | None:
        """Return the unit on whose weights the outputs depend most, if that is known."""
        score = torch.zeros(size, dtype=torch.float64)
        for view, dim in slopes:
            score += view.double().square().movedim(dim, 0).reshape(size, -1).sum(1).cpu()
        return int(score.argmax()) if score.max() > 0 else None

    def decisive(self, places: Places, size: int) -> int | None:
        """Find a unit on whose weights the outputs depend, by bisection; None if there is none."""
        units = torch.arange(size)
        if not self.sensitivity(places, units) > self.tolerance:
            return None
        while len(units) > 1:
            first, second = units.tensor_split(2)
            units = first if self.sensitivity(places, first) > self.tolerance else second
        return int(units)

    def sensitivity(self, places: Places, units: Tensor) -> float:
        """Return by how much the outputs would change with entirely different weights of some units."""
        return self.effect(places, units, self._noise) / _STEP

    def effect(self, places: Places, units: Tensor, change: Callable[[Tensor, int], Tensor]) -> float:
        """Return by how much the outputs change with the weights of some units."""
        with _changed(places, units, change):
            return difference(self.reference, self.run())

    def _noise(self, old: Tensor, dim: int) -> Tensor:
        """Return weights that are a little different."""
        scale = old.square().mean().sqrt() or old.new_tensor(1.0)
        return old + _STEP * scale * torch.randn(old.shape, generator=self.generator).to(old.device, old.dtype)


@contextmanager
def _changed(places: Places, units: Tensor, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Change the weights of some units in place, and take it back."""
    kept = []
    with torch.no_grad():
        for view, dim in places:
            index = units.to(view.device)
            old = view.index_select(dim, index)
            kept.append((view, dim, index, old))
            view.index_copy_(dim, index, change(old, dim))
        try:
            yield
        finally:
            for view, dim, index, old in reversed(kept):
                view.index_copy_(dim, index, old)


# --- random weights


@torch.no_grad()
def randomize_(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter of a model, and the statistics of its norms, random values, in place.

    What is all positive stays positive and keeps its scale. Anything else keeps its scale too, but gets the one of an
    initialisation by the number of inputs if it is smaller: weights close to zero would hide what they are for. Other
    buffers are constants of the architecture and stay as they are.
    """
    statistics = [(n, b) for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")]
    for _, tensor in [*model.named_parameters(), *statistics]:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        values = tensor.double()
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        scale = values.square().mean().sqrt()
        if not scale.isfinite():
            continue
        if (values > 0).all():
            tensor.copy_(values * (0.5 + torch.special.ndtr(noise)))
        else:
            inputs = tensor[0].numel() if tensor.ndim > 1 else 4
            old = values / scale if scale else noise
            tensor.copy_((old + noise) / 2**0.5 * max(float(scale), inputs**-0.5))
