"""A specification as a railway map: layers are rows, factors are rails that stop where a layer carries them.

Here is decided what is drawn and where; :func:`autoperm.plot.draw_spec` puts it on paper. A map stays readable at any
depth: rails that do not meet share a lane, norms join the row of the layer before them, and blocks that repeat are
drawn once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .signature import format_pattern, names
from .spec import Factor, PermutationSpec

_PARAMETRIZED = re.compile(r"\.parametrizations\..*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_ALIKE = 3
"""How many blocks in a row must be alike for all but the first to be folded into one row."""

_SHORTER = 3
"""How many times shorter than the longest rail in a lane another may be."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a rail meets a row. In a row of folded blocks the axes are not told: both are False.

    Attributes:
        row: which row.
        first: whether the factor is on the first axis of one of the row's tensors: the outputs, for most layers.
        later: whether it is on a later axis of one: the inputs, for most layers.
    """

    row: int
    first: bool
    later: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One layer, with the norms that follow it; or several blocks that are alike, folded.

    Attributes:
        label: the name of the module.
        tensors: the names of its tensors.
        pattern: the pattern of the tensor with most axes; empty where blocks are folded.
        folded: whether it stands for several blocks.
    """

    label: str
    tensors: tuple[str, ...]
    pattern: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Rail:
    """One free factor.

    Attributes:
        factor: the factor.
        stops: where it is carried, top to bottom.
        lane: its column, counted from the left.
        root: the group that it is part of: itself, or the outermost free factor that it varies over.
    """

    factor: Factor
    stops: tuple[Stop, ...]
    lane: int
    root: str

    @property
    def inner(self) -> bool:
        """Whether it varies over another factor that is drawn."""
        return self.root != self.factor.name

    @property
    def label(self) -> str:
        """Its name, its size and what it varies over."""
        over = f" each {', '.join(self.factor.over)}" if self.factor.over else ""
        return f"{self.factor.name} {self.factor.size}{over}"


@dataclass(frozen=True, slots=True)
class Map:
    """Rows, and the rails beside them."""

    rows: tuple[Row, ...]
    rails: tuple[Rail, ...]

    @property
    def lanes(self) -> int:
        """How many columns the rails take."""
        return 1 + max((rail.lane for rail in self.rails), default=-1)


def lay_out(spec: PermutationSpec, *, fold: bool = True) -> Map:
    """Lay out a specification.

    Args:
        spec: the specification.
        fold: draw blocks that repeat only once.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns(
        ...     {"0.weight": "h _", "2.weight": "_ h"}, nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> layout = lay_out(spec)
        >>> [row.label for row in layout.rows], [rail.label for rail in layout.rails]
        (['0', '2'], ['h 8'])
    """
    rows = _rows(spec)
    if fold:
        rows = _folded(spec, rows)
    stops = _stops(spec, rows)
    return Map(tuple(rows), tuple(_place(spec, stops)))


# --- rows


def _module(tensor: str) -> str:
    """The module that a tensor belongs to; a parameter of the model itself stands for itself."""
    return _PARAMETRIZED.sub("", tensor.rpartition(".")[0]) or tensor


def _rows(spec: PermutationSpec) -> list[Row]:
    modules: dict[str, list[str]] = {}
    for tensor in spec.patterns:
        modules.setdefault(_module(tensor), []).append(tensor)
    rows: list[Row] = []
    before = ""
    for module, tensors in modules.items():
        sibling = rows and before.rpartition(".")[0] == module.rpartition(".")[0]
        flat = all(len(spec.shapes[tensor]) < 2 for tensor in tensors)
        if sibling and flat and _carried(spec, tensors) <= _carried(spec, rows[-1].tensors):
            label = f"{rows[-1].label}, {module.rpartition('.')[2]}"
            rows[-1] = replace(rows[-1], label=label, tensors=(*rows[-1].tensors, *tensors))
        else:
            largest = max(tensors, key=lambda tensor: (len(spec.shapes[tensor]), len(_carried(spec, [tensor]))))
            rows.append(Row(module, tuple(tensors), format_pattern(spec.patterns[largest])))
        before = module
    return rows


def _carried(spec: PermutationSpec, tensors: Iterable[str]) -> set[str]:
    return {name for tensor in tensors for name in names(spec.patterns[tensor])}


def _stops(spec: PermutationSpec, rows: Sequence[Row]) -> dict[str, list[Stop]]:
    """For each free factor where it stops; without those that only folded blocks carry."""
    found: dict[str, list[Stop]] = {factor.name: [] for factor in spec.free}
    for i, row in enumerate(rows):
        axes: dict[str, set[int]] = {}
        for tensor in row.tensors:
            for axis, term in enumerate(spec.patterns[tensor]):
                for name in names(term):
                    axes.setdefault(name, set()).add(axis)
        for name in axes.keys() & found.keys():
            found[name].append(Stop(i, not row.folded and 0 in axes[name], not row.folded and max(axes[name]) > 0))
    return {name: stops for name, stops in found.items() if any(stop.first or stop.later for stop in stops)}


# --- blocks that are alike


@dataclass(slots=True)
class _Block:
    """The rows of ``prefix.index``."""

    index: str
    rows: list[int] = field(default_factory=list[int])


def _folded(spec: PermutationSpec, rows: list[Row]) -> list[Row]:
    """Keep the first of blocks that are alike; nested ones too, the outermost first."""
    for prefix in sorted({prefix for row in rows for prefix in _prefixes(row.label)}, key=len):
        carried: dict[str, set[int]] = {}
        for i, row in enumerate(rows):
            for name in _carried(spec, row.tensors):
                carried.setdefault(name, set()).add(i)
        blocks: list[_Block] = []
        for i, row in enumerate(rows):
            match = re.match(rf"{re.escape(prefix)}(\d+)\.", row.label)
            if match and (not blocks or blocks[-1].index != match[1]):
                blocks.append(_Block(match[1]))
            if match:
                blocks[-1].rows.append(i)
        kinds = [_kind(spec, rows, prefix, block, carried) for block in blocks]
        rows = _without_repeats(rows, prefix, blocks, kinds)
    return rows


def _prefixes(label: str) -> Iterable[str]:
    """What stands before each number in a module's name: ``"layers."`` in ``"layers.0.linear"``."""
    return (label[: match.start()] for match in re.finditer(r"(?<!\d)\d+\.", label))


def _without_repeats(rows: list[Row], prefix: str, blocks: list[_Block], kinds: list[object]) -> list[Row]:
    folded: dict[int, Row | None] = {}  # what becomes of a row; None where it vanishes
    start = 0
    while start < len(blocks):
        end = start + 1
        while end < len(blocks) and kinds[end] == kinds[start] and blocks[end].rows[0] == blocks[end - 1].rows[-1] + 1:
            end += 1
        if end - start >= _ALIKE:
            first, second, last = (blocks[i].index for i in (start, start + 1, end - 1))
            hidden = [row for block in blocks[start + 1 : end] for row in block.rows]
            tensors = tuple(tensor for row in hidden for tensor in rows[row].tensors)
            folded |= dict.fromkeys(hidden)
            folded[hidden[0]] = Row(f"{prefix}{second} to {last}: like {first}", tensors, folded=True)
        start = end
    kept = (folded.get(i, row) for i, row in enumerate(rows))
    return [row for row in kept if row is not None]


def _kind(
    spec: PermutationSpec, rows: Sequence[Row], prefix: str, block: _Block, carried: Mapping[str, set[int]]
) -> object:
    """What two blocks have in common that are alike: all but the names of the factors that only they carry."""
    here, stem = set(block.rows), prefix + block.index
    own: dict[str, int] = {}

    def anonymous(name: re.Match[str]) -> str:
        return f"#{own.setdefault(name[0], len(own))}" if carried[name[0]] <= here else name[0]

    layers = [
        (tensor.removeprefix(stem), spec.shapes[tensor], _NAME.sub(anonymous, format_pattern(spec.patterns[tensor])))
        for i in block.rows
        for tensor in rows[i].tensors
    ]
    factors = [spec.factors[name] for name in own]
    return layers, [(f.size, f.pinned, tuple(own.get(name, name) for name in f.over)) for f in factors]


# --- lanes


def _place(spec: PermutationSpec, stops: Mapping[str, Sequence[Stop]]) -> list[Rail]:
    """Give each group, with all that varies over it, the leftmost lanes that are free between its ends.

    Long ones choose first, and short ones stay out of their lanes: the streams that run through many layers stand on
    the left, what lives inside a block on the right.
    """
    groups: dict[str, list[str]] = {}
    for name in stops:
        groups.setdefault(_root(name, spec, stops), []).append(name)
    spans = {
        root: (min(stops[name][0].row for name in members), max(stops[name][-1].row for name in members))
        for root, members in groups.items()
    }
    length = {root: end - start + 1 for root, (start, end) in spans.items()}
    taken: list[list[str]] = []  # for each lane the groups in it, the longest first
    lanes: dict[str, int] = {}

    def fits(root: str, others: list[str]) -> bool:
        start, end = spans[root]
        apart = all(end < spans[other][0] or spans[other][1] < start for other in others)
        return apart and (not others or length[root] * _SHORTER >= length[others[0]])

    for root in sorted(groups, key=lambda root: (-length[root], spans[root])):
        offsets = _offsets(spec, groups[root], stops)
        lane, count = 0, 1 + max(offsets.values())
        while not all(fits(root, others) for others in taken[lane : lane + count]):
            lane += 1
        taken += [[] for _ in range(lane + count - len(taken))]
        for others in taken[lane : lane + count]:
            others.append(root)
        lanes |= {name: lane + offset for name, offset in offsets.items()}
    return [Rail(spec.factors[name], tuple(stops[name]), lanes[name], _root(name, spec, stops)) for name in stops]


def _offsets(spec: PermutationSpec, members: Sequence[str], stops: Mapping[str, Sequence[Stop]]) -> dict[str, int]:
    """Give each member of a group a lane right of what it varies over; members that do not meet may share one."""
    offsets: dict[str, int] = {}
    for name in sorted(members, key=lambda name: (len(spec.factors[name].over), stops[name][0].row)):
        offset = 1 + max((offsets[outer] for outer in spec.factors[name].over if outer in offsets), default=-1)
        while any(
            stops[other][0].row <= stops[name][-1].row and stops[name][0].row <= stops[other][-1].row
            for other in offsets
            if offsets[other] == offset
        ):
            offset += 1
        offsets[name] = offset
    return offsets


def _root(name: str, spec: PermutationSpec, stops: Mapping[str, object]) -> str:
    outer = [other for other in spec.factors[name].over if other in stops]
    return min(outer, key=lambda other: len(spec.factors[other].over)) if outer else name
