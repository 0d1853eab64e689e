"""Is a specification complete? Pinned axes are permuted after all, and the outputs compared.

What discovery calls a symmetry is one; what it does not call one may only be something that it did not understand. The
probe tells: it takes the axes that are pinned, one class of axes that are tied to each other at a time, exchanges two
units of the class, and runs the model. Outputs that do not change show a symmetry that the specification lacks, *if*
the two units have different weights and take part in what the model computes. So the model's weights are drawn at
random; and where the outputs did not change, the weights of the two units are changed a little: that must change the
outputs, and exchanging the units now must not, nor must it for other inputs (the same with their elements in another
order).

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .perturb import Bench, Places
from .report import table
from .signature import Interleaving, Name, Pinned, Product, Sum, Term
from .spec import Factor, PermutationSpec
from .state import tensors

_UNUSED = "the traced path never uses"
_MANY = 4
"""Of more classes that are pinned for reasons of one kind, all are permuted together, but not every two of them."""


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
        unexercised: classes of which no unit matters to the outputs for these inputs.
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
    inputs: Sequence[Any] | Mapping[str, Any],
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
        inputs: positional inputs, or a dictionary of inputs by name; floating-point ones are cast to float64. What they
            do not exercise is not probed: they should be random, and several.
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
    bench = Bench(named, model, inputs, randomize, generator)
    search = _Search(bench, {name: _tied(named, name, reasons) for name in named.factors})
    trials = search.trials()
    if limit is not None or seconds is not None:  # what is reached is a fair sample
        trials = [trials[i] for i in torch.randperm(len(trials), generator=generator).tolist()]
    trials, left = trials[:limit], len(trials[limit:]) if limit is not None else 0
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

    def __init__(self, bench: Bench, tied: Mapping[str, Tied]) -> None:
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
        found = self._judge(trial, self.bench.places(trial.names, trial.over), size)
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
            slopes = bench.places(trial.names, trial.over, slopes=True)
            unit = bench.decisive(places, size) if sure else bench.steepest(slopes, size)
            if unit is None:
                continue
            pair = (unit, unit + 1 if unit + 1 < size else unit - 1)
            units = torch.tensor(pair)
            if bench.effect(places, units) > bench.tolerance:
                return True
            effect, sensitivity = bench.effect_when_unlike(places, units)
            if sensitivity > bench.tolerance:
                allowed = bench.tolerance * min(sensitivity, 1)
                if effect > allowed:
                    return True
                if bench.other_inputs and bench.effect_when_unlike(places, units, bench.other_inputs)[0] > allowed:
                    return True
                whole = bench.effect_when_unlike(places, torch.arange(size))[0] <= allowed
                tied = tuple(self.tied[name] for name in trial.names)
                over = self.tied[trial.over] if trial.over else None
                return Missed(tied, pair, whole, effect, sensitivity, over)
        return False
