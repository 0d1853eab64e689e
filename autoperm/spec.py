"""The waist of the hourglass: which axes of which tensors move together. Everything after discovery uses only this.

A :class:`PermutationSpec` has one pattern for each parameter and floating-point buffer, in the notation of
:mod:`autoperm.signature`, and one :class:`Factor` for each name in them. It may be discovered, written by hand, or read
from JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import lgamma, log, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import SpecError
from .signature import (
    Interleaving,
    Name,
    Pattern,
    Pinned,
    Product,
    Rest,
    Term,
    format_pattern,
    names,
)

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .explain import Explanation
    from .permutation import Permutation
    from .write import Inference


@dataclass(frozen=True, slots=True)
class Factor:
    """A set of interchangeable units.

    Attributes:
        name: as it stands in the patterns.
        size: the number of units.
        over: names of the factors it varies over, outermost first: for each position of those it may be permuted
            differently (the channels ``d`` inside each head ``h``).
        pinned: whether its order is fixed; it has a name because others vary over it.
    """

    name: str
    size: int
    over: tuple[str, ...] = ()
    pinned: bool = False


@dataclass(frozen=True)
class PermutationSpec:
    """Which axes of which tensors may be permuted, together with which others.

    Attributes:
        patterns: for each tensor, one term an axis.
        shapes: for each tensor, its shape.
        factors: by name, indices before what varies over them.
        tied: names that are another name of the same tensor.
        reasons: for each tensor, for each axis, why it (or a part of it) is pinned; empty where all is free.
        unknown: operations that no rule knew, each with the code that would add one.
        notes: what else there is to know of how the specification was found: sentences.
        inference: what discovery ended with, from which :meth:`explain` explains; None for a specification that was
            written by hand or read from a file.

    Example:
        >>> spec = PermutationSpec.from_patterns(
        ...     {"0.weight": "h _", "0.bias": "h", "2.weight": "_ h", "2.bias": "_"},
        ...     nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> spec.factors["h"].size, round(spec.log10_order, 2)  # 8! = 40320
        (8, 4.61)
    """

    patterns: Mapping[str, Pattern]
    shapes: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, Factor]
    tied: Mapping[str, str] = field(default_factory=dict[str, str])
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]], compare=False)
    unknown: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    inference: Inference | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check that patterns, shapes and factors fit each other.

        Raises:
            SpecError: saying which tensor, which axis, and with which sizes.
        """
        for name, factor in self.factors.items():
            unknown = [other for other in factor.over if other not in self.factors]
            if unknown or name != factor.name:
                raise SpecError(f"factor {name!r} varies over {unknown}, which no pattern names")
            for other in factor.over:
                if not set(self.factors[other].over) < set(factor.over):
                    raise SpecError(
                        f"factor {name!r} varies over {other!r}, and so must vary over what {other!r} varies over: "
                        f"{list(self.factors[other].over)}"
                    )
        for name, pattern in self.patterns.items():
            shape = self.shapes.get(name)
            text = f'{name}: "{format_pattern(pattern)}"'
            if shape is None or len(shape) != len(pattern):
                raise SpecError(f"{text} has {len(pattern)} axes, the tensor has shape {list(shape or ())}")
            for axis, (term, size) in enumerate(zip(pattern, shape, strict=True)):
                known = self.size(term)
                if known not in (None, size):
                    raise SpecError(f"{text}: axis {axis} is {term} of length {known}, the tensor's is {size}")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the inference behind: it has the whole traced graph in it."""
        return {**self.__dict__, "inference": None}

    # --- reading

    def size(self, term: Term) -> int | None:
        """Return the length of an axis with a term; None where the term does not say (``_``)."""
        if isinstance(term, Name):
            if term.name not in self.factors:
                raise SpecError(f"{term.name!r} stands in a pattern, but is no factor")
            return self.factors[term.name].size
        if isinstance(term, Pinned):
            return term.size
        if isinstance(term, Rest):
            raise SpecError("'...' has no place in the pattern of a parameter: write every axis")
        if isinstance(term, Interleaving):
            leads = {self.size(lead) for lead, _ in term.turns}
            if len(leads) > 1:
                raise SpecError(f"in {term} the first factors differ in length: {sorted(map(str, leads))}")
            return (leads.pop() or 1) * sum(self.size(rest) or 1 for _, rest in term.turns)
        sizes = [self.size(inner) for inner in term.terms]
        if any(size is None for size in sizes):
            raise SpecError(f"inside {term} a pinned axis needs its length: a number instead of '_'")
        known = [size for size in sizes if size is not None]
        return prod(known) if isinstance(term, Product) else sum(known)

    @cached_property
    def free(self) -> tuple[Factor, ...]:
        """The factors that may be permuted."""
        return tuple(factor for factor in self.factors.values() if not factor.pinned and factor.size > 1)

    @cached_property
    def groups(self) -> tuple[Factor, ...]:
        """The free factors that vary over no other free factor: what hand-written specifications call permutations."""
        free = {factor.name for factor in self.free}
        return tuple(factor for factor in self.free if not free & set(factor.over))

    def copies(self, factor: Factor | str) -> int:
        """Return for how many positions of what it varies over a factor has a permutation of its own."""
        factor = self.factors[factor] if isinstance(factor, str) else factor
        return prod(self.factors[name].size for name in factor.over)

    @cached_property
    def log10_order(self) -> float:
        r"""The size of the group, :math:`\log_{10} |G| = \sum_f \text{copies}_f \log_{10}(n_f!)`."""
        return sum(self.copies(factor) * lgamma(factor.size + 1) / log(10) for factor in self.free)

    @cached_property
    def carriers(self) -> Mapping[str, tuple[tuple[str, int], ...]]:
        """For each factor, the (tensor, axis) pairs that carry it; tied names once."""
        found: dict[str, list[tuple[str, int]]] = {name: [] for name in self.factors}
        for tensor, pattern in self.patterns.items():
            if tensor not in self.tied:
                for axis, term in enumerate(pattern):
                    for name in dict.fromkeys(names(term)):
                        found[name].append((tensor, axis))
        return {name: tuple(axes) for name, axes in found.items()}

    # --- making permutations

    def identity(self) -> Permutation:
        """Return the permutation that moves nothing."""
        from .permutation import Permutation

        return Permutation(self, {})

    def random(self, generator: torch.Generator | int | None = None) -> Permutation:
        """Draw a group element uniformly.

        Args:
            generator: a CPU generator, or a seed for one.
        """
        from .permutation import Permutation

        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        indices = {}
        for factor in self.free:
            shape = [self.factors[name].size for name in factor.over]
            indices[factor.name] = torch.rand(*shape, factor.size, generator=generator, dtype=torch.float64).argsort(-1)
        return Permutation(self, indices)

    def verify(
        self,
        model: nn.Module,
        inputs: Sequence[Any] | Mapping[str, Any],
        *,
        draws: int = 2,
        tolerance: float = 1e-6,
        generator: torch.Generator | int | None = 0,
    ) -> float:
        """Check that group elements do not change what a model computes, in float64.

        The first one moves every unit that may move; the others are random.

        Args:
            model: a model that the specification is for; it is not changed.
            inputs: positional inputs, or inputs by name; floating-point ones are cast to float64. Where the model's
                path depends on data (its ``notes`` say so), verify on several, one call for each.
            draws: how many group elements to draw.
            tolerance: largest allowed difference, relative to the largest output. A model that computes in float32
                inside is allowed as much as that makes.
            generator: a generator or seed.

        Returns:
            The largest relative difference that was found.

        Raises:
            EquivalenceError: if a group element changes the outputs.
        """
        from .equivalence import verify

        return verify(self, model, inputs, draws=draws, tolerance=tolerance, generator=generator)

    def explain(self, tensor: str, axis: int, to: tuple[str, int] | None = None) -> Explanation:
        """Say why an axis is pinned, or moves with others: the shortest chain of operations, with their source lines.

        Args:
            tensor: the name of a parameter or buffer.
            axis: which of its axes.
            to: another tensor and axis: why they move together. If left out, the nearest one that does.

        Raises:
            SpecError: if there is no such tensor or axis, if the two do not move together, or if the specification was
                written by hand or read from a file.

        Example:
            >>> import autoperm
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> print(autoperm.discover(net).explain("2.weight", 1))
            2.weight[1] is a
              factor a, 8 units: free, moves with 0.weight[0], 0.bias[0]
                2.weight[1] = relu[1]  by aten.linear, in 2
                relu[1] = linear[1]  by aten.relu, in 1
                linear[1] = 0.weight[0]  by aten.linear, in 0
            >>> print(autoperm.discover(net).explain("2.weight", 0))
            2.weight[0] is _
              2 units: pinned (a law of the model)
                2.weight[0] = linear_1[1]  by aten.linear, in 2
                linear_1[1]: model output
        """
        from .explain import explain

        return explain(self, tensor, axis, to)

    def check(self, state: Mapping[str, Tensor], *, what: str = "the state dict") -> None:
        """Check that tensors fit the specification.

        Raises:
            SpecError: naming what is missing, or which shapes differ.
        """
        missing = [name for name in self.patterns if name not in state]
        if missing:
            raise SpecError(f"{what} lacks {len(missing)} tensors of the specification: {', '.join(missing[:5])}")
        for name, shape in self.shapes.items():
            if tuple(state[name].shape) != shape:
                raise SpecError(
                    f"{name} has shape {list(state[name].shape)} in {what}, {list(shape)} in the specification"
                )

    # --- writing and reading

    @staticmethod
    def from_patterns(
        patterns: Mapping[str, str],
        like: nn.Module | Mapping[str, Tensor],
        *,
        over: Mapping[str, Sequence[str]] | None = None,
    ) -> PermutationSpec:
        """Build a specification written by hand.

        Args:
            patterns: for each tensor a pattern, as ``{"attn.weight": "(h=4 d) c"}``. Tensors that are left out are
                pinned, except other names of a tensor that is not. A size is needed once for each name that never
                stands alone on an axis.
            like: a model or state dict that has the shapes.
            over: for each factor that varies over others, their names, as ``{"d": ["h"]}``. Nothing varies unless said.

        Raises:
            SignatureError: if a pattern does not parse.
            SpecError: if a pattern does not fit its tensor, or two names of one tensor have different patterns.
        """
        from .by_hand import from_patterns

        return from_patterns(patterns, like, over=over or {})

    @staticmethod
    def from_axes_to_perm(
        axes_to_perm: Mapping[str, Sequence[str | None]], like: nn.Module | Mapping[str, Tensor]
    ) -> PermutationSpec:
        """Read the dictionary ``axes_to_perm`` of the Git Re-Basin code: for each tensor one name or None an axis.

        The axes are those of PyTorch's tensors: ``(out, in)`` for a linear layer, ``(out, in, height, width)`` for a
        convolution. Flax has the outputs last; turn its tuples round. Whether the dictionary is right for the model
        is another question: :meth:`verify` answers it.

        Args:
            axes_to_perm: equal names are permuted alike, None is pinned. Tensors that are left out are pinned, except
                other names of a tensor that is not.
            like: a model or state dict that has the shapes.

        Raises:
            SpecError: saying which tensor does not exist or has other axes, or which name stands on axes of
                different lengths.

        Example:
            >>> spec = PermutationSpec.from_axes_to_perm(
            ...     {"0.weight": ("P_0", None), "0.bias": ("P_0",), "2.weight": (None, "P_0")},
            ...     nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> spec.factors["P_0"].size
            8
        """
        from .interchange import from_axes_to_perm

        return from_axes_to_perm(axes_to_perm, like)

    def to_axes_to_perm(self, *, lossy: bool = False) -> dict[str, tuple[str | None, ...]]:
        """Write the specification as Git Re-Basin's dictionary ``axes_to_perm``: one name or None an axis.

        Args:
            lossy: write the part of the group that the format can say: factors inside products, sums and interleavings
                are pinned everywhere, and factors that vary over others are permuted alike for each of their positions.

        Raises:
            SpecError: if something would be lost, unless ``lossy``.

        Example:
            >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
            >>> spec.to_axes_to_perm()
            {'weight': ('h', None), 'bias': ('h',)}
        """
        from .interchange import to_axes_to_perm

        return to_axes_to_perm(self, lossy=lossy)

    def to_json(self, *, indent: int | None = 1) -> str:
        """Write the specification as JSON; :meth:`from_json` reads it back."""
        from .interchange import to_json

        return to_json(self, indent=indent)

    @staticmethod
    def from_json(text: str) -> PermutationSpec:
        """Read a specification from JSON.

        Raises:
            SpecError: if the text is not a specification.

        Example:
            >>> spec = PermutationSpec.from_patterns({"weight": "h _"}, nn.Linear(2, 3))
            >>> PermutationSpec.from_json(spec.to_json()) == spec
            True
        """
        from .interchange import from_json

        return from_json(text)

    # --- showing

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        axes: Axes | None = None,
        fold: bool = True,
        title: str | None = None,
    ) -> Figure:
        """Draw the specification as a railway map: layers are rows, factors are rails.

        See :func:`autoperm.plot.draw_spec`. Needs matplotlib: ``pip install "autoperm[plot]"``.

        Args:
            path: where to save the picture; the ending says in which format.
            axes: where to draw; by default a new figure, as large as the map needs.
            fold: draw blocks that repeat, three or more in a row, only once.
            title: text above; by default how many groups and permutations there are.

        Returns:
            The figure drawn on.
        """
        from .plot import draw_spec, saved

        return saved(draw_spec(self, axes=axes, fold=fold, title=title), path)

    def __str__(self) -> str:
        """Return a table that a person likes to read."""
        from .report import describe_spec

        return describe_spec(self)
