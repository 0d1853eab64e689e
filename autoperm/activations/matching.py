"""Activation matching on two models and data: which activations speak for which factor, and what they say.

See :mod:`autoperm.matching.activation` for what is maximised.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..batches import check_readable
from ..errors import ActivationsError, AutopermError, EvaluationError
from ..matching import Match
from ..matching.activation import match_moments
from ..matching.assignment import Array
from ..spec import PermutationSpec
from ..state import tensors
from .capture import Activation, Capture, replica
from .moments import Moment, Moments
from .speakers import Speaker, When, Which, find_speakers


@dataclass(frozen=True)
class ActivationMatch(Match):
    """The result of activation matching.

    Attributes:
        speakers: for each factor the activations that were compared. What varies over a factor speaks for it too.
        silent: free factors that no activation speaks for; they do not move.
    """

    speakers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ActivationMatching:
    """Align B's units with those of A that have most in common with them on data.

    For each factor the second moments of A's and B's units are summed over the activations that carry it, and one
    assignment, nested where factors vary over others, picks the pairs with the largest sum. Both models run in
    evaluation mode on the same batches, once; what is kept is the moments, not the data.

    Activations are found in the graph of one run, with the axes of each: sums and products (fused layers, heads) come
    apart there. An axis that another factor of its own permutes (the latent positions of a perceiver beside its
    channels) is averaged over, because A's and B's positions along it are not comparable yet. An activation that has
    another shape in B than in A, such as what a router sends to an expert, is left out.

    Attributes:
        data: batches: tensors, tuples that begin with the model's input, or mappings of inputs by name. They are read
            once; labels are not needed.
        moment: ``"pearson"``, the correlation, in which every unit has the same say, and dead ones none;
            ``"covariance"``; or ``"uncentred"``, the inner product, as in the Git Re-Basin paper.
        when: for factors that an elementwise nonlinearity passes on, compare the activations right ``"after"`` it or
            ``"before"`` it.
        which: where several activations carry a factor, as along a residual stream, compare the ``"first"`` or the
            ``"last"`` or ``"all"`` of them; or a function that picks from :class:`~autoperm.activations.Activation`,
            by module, operation or name, whatever ``when`` says.
        batches: how many batches to read; all by default.
        progress: show a progress bar.

    Example:
        >>> make = lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, make())
        >>> model_a = make()
        >>> planted = spec.random(1)
        >>> model_b = planted.apply(model_a)
        >>> matcher = ActivationMatching([torch.randn(64, 4)]).bind(model_a, model_b)
        >>> match = matcher(spec, dict(model_a.named_parameters()), dict(model_b.named_parameters()))
        >>> match.permutation.compose(planted) == spec.identity()
        True

    Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.1. Correlations: Jordan et al.,
    *REPAIR*, ICLR 2023. Heads, and which tensors speak for a residual stream: Verma, Elbayad, *Merging Text Transformer
    Models from Different Initializations*, TMLR 2024.
    """

    data: Iterable[Any]
    moment: Moment = "pearson"
    when: When = "after"
    which: Which = "all"
    batches: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            AutopermError: for an option that does not exist.
            EvaluationError: if the data cannot be read.
        """
        check_readable(self.data)
        for name, value, known in [
            ("moment", self.moment, ("uncentred", "covariance", "pearson")),
            ("when", self.when, ("after", "before")),
            ("which", self.which, ("first", "last", "all")),
        ]:
            if value not in known and not (name == "which" and callable(value)):
                more = ", or pass a function" if name == "which" else ""
                raise AutopermError(f"{name} is {value!r}; choose {', '.join(map(repr, known))}{more}")
        if self.batches is not None and self.batches < 1:
            raise AutopermError(f"batches is {self.batches}, but must be at least 1, or None to read all")

    def bind(self, model_a: nn.Module, model_b: nn.Module) -> Callable[..., ActivationMatch]:
        """Return a matcher for two models: ``(spec, params_a, params_b) -> ActivationMatch``.

        It computes with the models' own parameters and buffers, whatever parameters it is given.
        """

        def match(
            spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
        ) -> ActivationMatch:
            return self._match(spec, model_a, model_b)

        return match

    def __call__(
        self, spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> ActivationMatch:
        """Refuse: activations need models.

        Raises:
            AutopermError: always.
        """
        raise AutopermError(
            "activation matching needs the models, not only their parameters: pass it to align, or call "
            "matcher.bind(model_a, model_b)(spec, params_a, params_b)"
        )

    def _match(self, spec: PermutationSpec, model_a: nn.Module, model_b: nn.Module) -> ActivationMatch:
        """Stream the data through both models, and solve.

        Raises:
            SpecError: if the specification does not fit the models.
            EvaluationError: if there is no data, or the models do not run on it.
            ActivationsError: if activations are NaN or infinite.
            TraceError: if a model takes another path on some batch.
        """
        for model, what in ((model_a, "model A"), (model_b, "model B")):
            spec.check(tensors(model) | dict(model.named_parameters(remove_duplicate=False)), what=what)
        comparison: _Comparison | None = None
        interrupted = False
        try:
            for number, batch in enumerate(self._batches()):
                if comparison is None:
                    with _same_random_numbers(number):
                        capture = Capture.of(model_a, batch)
                    speakers = find_speakers(spec, capture, when=self.when, which=self.which)
                    comparison = _Comparison(spec, capture, speakers, replica(model_a), replica(model_b))
                comparison.add(batch, number)
        except KeyboardInterrupt:
            interrupted = True
        if comparison is None and not interrupted:
            once = isinstance(self.data, Iterator)
            raise EvaluationError(
                "the data yielded no batches, so there are no activations to compare"
                + (f"; a {type(self.data).__name__} can be read only once: give a DataLoader or a list" if once else "")
            )
        return _solve(spec, comparison, self.moment, interrupted)

    def _batches(self) -> Iterable[Any]:
        whole: Iterable[Any] = [self.data] if isinstance(self.data, (Tensor, Mapping)) else self.data
        total = len(whole) if isinstance(whole, Sized) else None
        if self.batches is not None:
            total = self.batches if total is None else min(total, self.batches)
        shown: Iterable[Any] = tqdm(
            islice(whole, self.batches), total=total, desc="activation matching", disable=not self.progress, leave=False
        )
        return shown


class _Comparison:
    """What was seen so far of two models' activations."""

    def __init__(
        self,
        spec: PermutationSpec,
        capture: Capture,
        speakers: Mapping[str, Sequence[Speaker]],
        a: nn.Module,
        b: nn.Module,
    ) -> None:
        self.spec, self.capture, self.speakers, self.a, self.b = spec, capture, speakers, a, b
        self.moments: dict[Speaker, Moments] = {}
        self.of: dict[Activation, list[Speaker]] = {}
        for speaker in chain.from_iterable(speakers.values()):
            self.moments[speaker] = Moments()
            self.of.setdefault(speaker.activation, []).append(speaker)

    def add(self, batch: Any, number: int) -> None:
        """Run both models on a batch."""
        kept: dict[Activation, Tensor] = {}

        def keep(activation: Activation, tensor: Tensor) -> None:
            _check_finite(activation, tensor)
            kept[activation] = tensor.clone()

        def compare(activation: Activation, tensor: Tensor) -> None:
            _check_finite(activation, tensor)
            other = kept.pop(activation)
            if other.shape != tensor.shape:  # data decide what is looked at, such as the tokens that an expert gets
                self._leave_out(activation)
                return
            cells = self.capture.cells(activation, tensor.shape)
            for speaker in self.of[activation]:
                cell = cells[speaker.cell]
                self.moments[speaker].add(speaker.samples(cell, other), speaker.samples(cell, tensor))

        for model, which, see in ((self.a, "A", keep), (self.b, "B", compare)):
            try:
                with _same_random_numbers(number):
                    self.capture.run(model, batch, self.of, see)
            except AutopermError as error:
                raise type(error)(f"model {which}, batch {number}: {error}") from error

    def _leave_out(self, activation: Activation) -> None:
        """Forget what an activation said: its samples are not the same ones in both models."""
        for speaker in self.of.pop(activation):
            self.moments[speaker] = Moments()

    def heard(self, factor: str) -> list[Speaker]:
        """Return the speakers of a factor of which there are samples."""
        return [speaker for speaker in self.speakers[factor] if self.moments[speaker].count]

    def gathered(self, moment: Moment) -> Generator[tuple[str, Array]]:
        """Yield for each factor what A's and B's units have in common; those without samples are left out."""
        for name in self.speakers:
            heard = self.heard(name)
            if heard:
                factors = [self.spec.factors[outer] for outer in (*self.spec.factors[name].over, name)]
                aligned = [factor.size for factor in factors if factor.pinned]
                path = [factor.size for factor in factors if not factor.pinned]
                matrices = [self.moments[speaker].second(moment).cpu().numpy() for speaker in heard]
                yield name, np.sum(matrices, 0).reshape(*aligned, *path, *path)


def _check_finite(activation: Activation, tensor: Tensor) -> None:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ActivationsError(
            f"{bad} of {tensor.numel()} values of {activation} are NaN or infinite\n  Leave the samples out that lead "
            "to them, or this activation: which=lambda activation: ..."
        )


@contextmanager
def _same_random_numbers(seed: int) -> Generator[None]:
    """Let A and B draw the same numbers, where a model draws some in evaluation mode."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _solve(spec: PermutationSpec, comparison: _Comparison | None, moment: Moment, interrupted: bool) -> ActivationMatch:
    moments: dict[str, Array] = {}
    speakers: dict[str, tuple[str, ...]] = {}
    try:
        if comparison is not None:
            for name, array in comparison.gathered(moment):
                moments[name] = array
                speakers[name] = tuple(dict.fromkeys(speaker.activation.name for speaker in comparison.heard(name)))
    except KeyboardInterrupt:  # what has no moments yet does not move
        interrupted = True
    match = match_moments(spec, moments)
    heard = {name for factor in speakers for name in (factor, *spec.factors[factor].over)}
    return ActivationMatch(
        match.permutation,
        match.objective,
        match.sweeps,
        match.converged and not interrupted,
        interrupted=match.interrupted or interrupted,
        speakers=speakers,
        silent=tuple(factor.name for factor in spec.free if factor.name not in heard),
    )
