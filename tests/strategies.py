"""Random networks and specifications, with the symmetries they have by construction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import Groups, RMSNorm, randomize
from torch import Tensor, nn

from autoperm import PermutationSpec
from autoperm.signature import names, parse_pattern
from autoperm.testing import elements as elements
from autoperm.testing import random_state as random_state

INPUTS, OUTPUTS, BATCH, LENGTH = 5, 3, 2, 3


def example_input() -> Tensor:
    return torch.randn(BATCH, LENGTH, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# ------------------------------------------------------------------------------------------- layers on the last axis


class ChannelsFirst(nn.Module):
    """Run a layer that wants (samples, channels, positions) on (batch, length, channels)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class TokenGroupNorm(nn.GroupNorm):
    """Statistics of each position alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Gated(nn.Module):
    """SwiGLU in the three ways in which people write it."""

    def __init__(self, width: int, hidden: int, how: str) -> None:
        super().__init__()
        self.up, self.how = nn.Linear(width, 2 * hidden), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.how == "glu":
            return F.glu(y, dim=-1)
        half = y.shape[-1] // 2
        gate, value = y.chunk(2, -1) if self.how == "chunk" else (y[..., :half], y[..., half:])
        return F.silu(gate) * value


class Concat(nn.Module):
    """Branches side by side; the input itself first, if it is kept (DenseNet)."""

    def __init__(self, branches: Sequence[nn.Module], keep: bool) -> None:
        super().__init__()
        self.branches, self.keep = nn.ModuleList(branches), keep

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.keep + [torch.tanh(branch(x)) for branch in self.branches], dim=-1)


class Total(nn.Module):
    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.tanh(branch(x)) for branch in self.branches]).sum(0)


class Queue(nn.Module):
    """Branches one after the other along the sequence: what reads them all makes their channels one."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(branch(x)) for branch in self.branches], dim=1)


class Token(nn.Module):
    """A learnt token before the sequence: its channels are the stream's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], 1, -1), x], dim=1)


class HeadSoftmax(nn.Module):
    """A softmax within each of some heads of channels."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(-2)


class View(nn.Module):
    """Heads that nothing tells from channels: still one set of units."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.unflatten(-1, (self.heads, -1))).flatten(-2)


class HeadScale(nn.Module):
    """One learnt scale for each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.weight = heads, nn.Parameter(torch.empty(heads, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.unflatten(-1, (self.heads, -1)) * self.weight).flatten(-2)


class HeadTranspose(nn.Module):
    """Channel shuffle: (h d) becomes (d h)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -1).flatten(-2)


class Attention(nn.Module):
    """Self-attention, without the residual; queries, keys and values come from one layer, or from three."""

    def __init__(self, width: int, heads: int, size: int, layout: str) -> None:
        super().__init__()
        self.heads, self.size, self.layout = heads, size, layout
        inner = heads * size
        self.qkv = nn.ModuleList(nn.Linear(width, inner) for _ in "qkv") if layout == "separate" else None
        self.fused = None if layout == "separate" else nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h, d = self.heads, self.size
        if self.layout == "separate":
            q, k, v = (layer(x).view(b, n, h, d).transpose(1, 2) for layer in self.qkv)
        elif self.layout == "parts first":
            q, k, v = self.fused(x).view(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "heads first":
            q, k, v = self.fused(x).view(b, n, h, 3 * d).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = (part.view(b, n, h, d).transpose(1, 2) for part in self.fused(x).split(h * d, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, h * d))


# ------------------------------------------------------------------------- networks whose symmetries are known exactly


@dataclass
class Part:
    """A range of channels: ``size`` units, or ``heads`` heads of ``size`` units.

    ``counted``: another stream has written down the group of the heads. ``shuffled``: it may not be cut any more.
    """

    size: int
    heads: int = 0
    counted: bool = False
    shuffled: bool = False

    @property
    def width(self) -> int:
        return self.size * max(self.heads, 1)

    def groups(self) -> Groups:
        if not self.heads:
            return [(self.size, 1)]
        return [(self.size, self.heads), *[(self.heads, 1)] * (not self.counted)]


@dataclass(frozen=True)
class Sample:
    """A random network and the groups it has by construction."""

    model: nn.Module
    groups: Groups
    text: str

    def __repr__(self) -> str:
        return self.text


class _Recipe:
    """Layers so far, and what is known of the stream of channels: a sequence of parts."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.layers: list[nn.Module] = []
        self.text: list[str] = []
        self.groups: Groups = []
        self.parts: list[Part] = []

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    def size(self) -> int:
        return self.draw(st.integers(2, 12))

    def add(self, layer: nn.Module, *what: object) -> None:
        self.layers.append(layer)
        self.text.append(" ".join(map(str, what)))

    def become(self, *parts: Part) -> None:
        """Write down the groups of the stream, and start another."""
        self.groups += [group for part in self.parts for group in part.groups()]
        self.parts = list(parts)

    def cut(self) -> int:
        """Choose the number of heads of the stream, the one it has if it has heads already."""
        (part,) = self.parts
        if not part.heads:
            part.heads = self.draw(st.sampled_from(_divisors(part.size)))
            part.size //= part.heads
        return part.heads

    def step(self) -> None:
        # A stream is cut only if it is one set of units, or cut in the same way already: then all that is cut is free.
        one = len(self.parts) == 1 and not self.parts[0].shuffled
        kinds = [*_WHOLE, *_HEADS] if one and (self.parts[0].heads or _divisors(self.parts[0].size)) else _WHOLE
        kind, width = self.draw(st.sampled_from(kinds)), self.width
        if kind == "linear":
            new = self.size()
            self.add(nn.Sequential(nn.Linear(width, new), nn.GELU()), kind, new)
            self.become(Part(new))
        elif kind == "activation":
            which = self.draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU, nn.Hardswish, nn.Softplus]))
            self.add(which(), which.__name__)
        elif kind == "norm":
            which = self.draw(st.sampled_from([nn.LayerNorm, RMSNorm, nn.BatchNorm1d, nn.InstanceNorm1d]))
            norm = which(width, affine=True) if which is nn.InstanceNorm1d else which(width)
            self.add(norm if which in (nn.LayerNorm, RMSNorm) else ChannelsFirst(norm), which.__name__)
        elif kind == "feedforward":
            hidden = self.size()
            self.add(Residual(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)), kind, hidden)
            self.groups.append((hidden, 1))
        elif kind == "gated":
            hidden, how = self.size(), self.draw(st.sampled_from(["glu", "chunk", "slice"]))
            self.add(Gated(width, hidden, how), kind, hidden, how)
            self.become(Part(hidden))
        elif kind == "attention":
            heads, size = self.draw(st.integers(2, 4)), self.draw(st.integers(2, 5))
            layout = self.draw(st.sampled_from(["separate", "parts first", "heads first", "split"]))
            self.add(Residual(Attention(width, heads, size, layout)), kind, heads, size, layout)
            self.groups += [(heads, 1), (size, heads), (size, heads)]
        elif kind == "concat":
            sizes = self.draw(st.lists(st.integers(2, 8), min_size=2, max_size=3))
            self.add(Concat([nn.Linear(width, n) for n in sizes], keep=False), kind, sizes)
            self.become(*map(Part, sizes))
        elif kind == "dense":
            sizes = self.draw(st.lists(st.integers(2, 8), min_size=1, max_size=2))
            self.add(Concat([nn.Linear(width, n) for n in sizes], keep=True), kind, sizes)
            self.parts += map(Part, sizes)
        elif kind == "total":
            new, branches = self.size(), self.draw(st.integers(2, 3))
            self.add(Total([nn.Linear(width, new) for _ in range(branches)]), kind, new, branches)
            self.become(Part(new))
        elif kind == "queue":
            new, branches = self.size(), self.draw(st.integers(2, 3))
            self.add(Queue([nn.Linear(width, new) for _ in range(branches)]), kind, new, branches)
            self.become(Part(new))
        elif kind == "token":
            self.add(Token(width), kind)
        elif kind == "grouped":
            heads, size = self.cut(), self.draw(st.integers(2, 4))
            self.add(ChannelsFirst(nn.Conv1d(width, heads * size, 1, groups=heads)), kind, heads, size)
            self.become(Part(size, heads, counted=True))
        elif kind == "view":
            (part,) = self.parts
            if not part.heads:  # else it is cut already; and cut so, it could be cut in no other way
                heads = self.draw(st.sampled_from(_divisors(part.size)))
                self.add(View(heads), kind, heads)
                part.shuffled = True
        else:
            heads = self.cut()
            self.add(_HEADS[kind](heads, width), kind, heads)
            self.parts[0].shuffled = kind == "shuffle"


_WHOLE = [
    "linear",
    "activation",
    "norm",
    "feedforward",
    "gated",
    "attention",
    "concat",
    "dense",
    "total",
    "queue",
    "token",
]
_HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "group norm": TokenGroupNorm,
    "softmax": lambda heads, width: HeadSoftmax(heads),
    "scale": lambda heads, width: HeadScale(heads),
    "shuffle": lambda heads, width: HeadTranspose(heads),
    "grouped": lambda heads, width: nn.Identity(),
    "view": lambda heads, width: nn.Identity(),
}


def _divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


@st.composite
def known_networks(draw: Callable[..., Any]) -> Sample:
    """A random network of layers that are put together so that the groups are known."""
    recipe = _Recipe(draw)
    stem = recipe.size()
    recipe.add(nn.Linear(INPUTS, stem), "stem", stem)
    recipe.parts = [Part(stem)]
    for _ in range(draw(st.integers(1, 5))):
        recipe.step()
    recipe.add(nn.Linear(recipe.width, OUTPUTS), "head")
    recipe.become()
    model = randomize(nn.Sequential(*recipe.layers).double().eval(), draw(st.integers(0, 3)))
    return Sample(model, sorted(recipe.groups), "; ".join(recipe.text))


# ------------------------------------------------------------------------------- programs of which nothing is known


_STEPS: dict[str, Callable[[Program, Tensor, int, int], Tensor]] = {}


def _program_step(function: Callable[[Program, Tensor, int, int], Tensor]) -> Callable[..., Tensor]:
    _STEPS[function.__name__] = function
    return function


class Program(nn.Module):
    """A random sequence of operations on (batch, length, channels) that need not fit each other at all.

    Discovery may find little in it, but what it finds must be right. The numbers of a step choose among its variants.
    Parameters are made as they are met in a first run.
    """

    WIDEST = 24

    def __init__(self, plan: Sequence[tuple[str, int, int]]) -> None:
        super().__init__()
        self.plan = list(plan)
        self.weights = nn.ParameterList()
        self._building, self._next = True, 0
        with torch.no_grad():
            self(example_input().float())
        self._building = False

    def weight(self, *shape: int) -> Tensor:
        if self._building:
            self.weights.append(nn.Parameter(torch.empty(shape)))
            nn.init.normal_(self.weights[-1])
        self._next += 1
        return self.weights[self._next - 1]

    def linear(self, x: Tensor, width: int) -> Tensor:
        return F.linear(x, self.weight(width, x.shape[-1]), self.weight(width))

    def forward(self, x: Tensor) -> Tensor:
        self._next = 0
        x = self.linear(x, 12)
        for name, i, j in self.plan:
            x = _STEPS[name](self, x, i, j)
            if x.shape[-1] > self.WIDEST:
                x = torch.tanh(self.linear(x, 12))
        return self.linear(torch.relu(x), OUTPUTS)


def _pick(n: int, i: int) -> int:
    """A divisor of n."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return divisors[i % len(divisors)]


def _range(n: int, i: int, j: int) -> tuple[int, int]:
    """A range of at least one place."""
    start = i % n
    return start, start + 1 + j % (n - start)


@_program_step
def linear(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    return torch.tanh(net.linear(x, 1 + i % 12))


@_program_step
def same_width(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    y = torch.relu(net.linear(x, x.shape[-1]))
    return [x + y, x * y, torch.maximum(x, y), torch.where(x > 0, x, y)][i % 4]


@_program_step
def shared(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    """One weight twice, plain or transposed."""
    weight = net.weight(x.shape[-1], x.shape[-1])
    y = torch.tanh(F.linear(x, weight))
    return F.linear(y, weight if i % 2 else weight.t())


@_program_step
def autoencoder(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    weight = net.weight(1 + i % 8, x.shape[-1])
    y = torch.tanh(F.linear(x, weight)) @ weight
    return x + y if j % 2 else y


@_program_step
def sliced_weight(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    low, high = _range(16, i, j)
    weight = net.weight(16, x.shape[-1])
    return torch.cat([torch.tanh(F.linear(x, weight[low:high])), F.linear(x, weight[: 1 + i % 16])], -1)


@_program_step
def cut(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    low, high = _range(x.shape[-1], i, j)
    return x[..., low:high]


@_program_step
def strided(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    return x[..., i % min(x.shape[-1], 3) :: 1 + j % 3]


@_program_step
def overlap(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    k = 1 + i % x.shape[-1]
    a, b = x[..., :k], x[..., x.shape[-1] - k :]
    return a + b if j % 2 else a * torch.sigmoid(b)


@_program_step
def pieces(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    parts = x.chunk(1 + i % 4, -1) if j % 2 else x.split(1 + i % x.shape[-1], -1)
    return torch.cat([parts[-1], *parts[:-1]], -1)


@_program_step
def ordered(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    dim = -1 - j % 2
    return [x.flip(dim), x.roll(1, dim), x.cumsum(dim), x + x.flip(dim)][i % 4]


@_program_step
def regroup(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    y = x.unflatten(-1, (_pick(x.shape[-1], i), -1)).transpose(-2, -1).flatten(-2)
    return y if j % 2 else x + y


@_program_step
def normalise(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    c = x.shape[-1]
    heads = x.unflatten(-1, (_pick(c, i), -1))
    return [
        lambda: F.layer_norm(x, (c,), net.weight(c), net.weight(c)),
        lambda: F.group_norm(x.flatten(0, 1), _pick(c, i), net.weight(c), net.weight(c)).view(x.shape),
        lambda: heads.softmax(-1).flatten(-2),
        lambda: heads.softmax(-2).flatten(-2),
        lambda: F.layer_norm(heads, heads.shape[-2:], net.weight(*heads.shape[-2:])).flatten(-2),
        lambda: (heads / (1 + heads.abs().amax(-1, keepdim=True))).flatten(-2),
        lambda: (heads - heads.mean(-2, keepdim=True)).flatten(-2),
        lambda: F.normalize(heads, dim=-1).flatten(-2) * net.weight(c),
    ][j % 8]()


@_program_step
def head_scale(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    heads = x.unflatten(-1, (_pick(x.shape[-1], i), -1))
    rows, columns = heads.shape[-2:]
    if j % 3 == 0:
        return x * net.weight(rows, 1).expand(rows, columns).reshape(-1)
    return (heads * net.weight(columns) if j % 3 == 1 else heads + net.weight(rows, columns)).flatten(-2)


@_program_step
def grouped(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    c = x.shape[-1]
    groups = _pick(c, i)
    weight = net.weight(groups * (1 + j % 3), c // groups, 1)
    return F.conv1d(x.transpose(1, 2), weight, net.weight(len(weight)), groups=groups).transpose(1, 2)


@_program_step
def reduce(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    heads = x.unflatten(-1, (_pick(x.shape[-1], i), -1))
    return [heads.amax(-1), heads.mean(-2), heads.sum(-1), heads.max(-2).values][j % 4]


@_program_step
def tiled(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    n = 2 + i % 2
    y = x.repeat(1, 1, n) if j % 2 else x.repeat_interleave(n, -1)
    return y * torch.relu(net.linear(x, y.shape[-1])) if j % 3 else y


@_program_step
def padded(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    y = F.pad(x, (i % 3, j % 3))
    return y + net.linear(x, y.shape[-1]) if i % 2 else y


@_program_step
def joined(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    y = torch.relu(net.linear(x, x.shape[-1]))
    return [
        lambda: torch.cat([x, y], -1),
        lambda: torch.cat([x, x], -1),
        lambda: torch.stack([x, y], -1).flatten(-2),
        lambda: torch.stack([x, y], -2).flatten(-2),
        lambda: torch.stack([x, y]).softmax(0).sum(0),
        lambda: torch.cat([y, x], 1)[:, : x.shape[1]],
        lambda: torch.stack([x, y], 1)[:, i % 2],
    ][j % 7]()


@_program_step
def written(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    """Writes in place, into the tensor or through a view of it."""
    y, (low, high) = x.clone(), _range(x.shape[-1], i, j)
    how = (i + j) % 6
    if how == 0:
        y[..., low:high] = torch.tanh(x[..., low:high])
    elif how == 1:
        y[..., low:high].add_(1.0)
    elif how == 2:
        y.transpose(1, 2)[:, low] = 0.5
    elif how == 3:
        y[..., :: 1 + i % 2] *= 2
    elif how == 4:
        y.unflatten(-1, (_pick(x.shape[-1], i), -1))[..., 0, :].mul_(-1)
    else:
        y[..., torch.tensor([low])] = x.mean(-1, keepdim=True)
    return y


@_program_step
def picked(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    places = torch.arange(x.shape[-1])[i % 2 :].flip(0) if i % x.shape[-1] else torch.tensor([0])
    return x[..., places] if j % 2 else x.index_select(-1, places)


@_program_step
def pairs(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    x = x[..., :4]
    y = torch.relu(net.linear(x, 1 + i % 4)) if j % 2 else x
    return torch.einsum("bnc,bnd->bncd", x, y).flatten(-2)


@_program_step
def attend(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    """Attention in which the values, or all three, may be the stream itself."""
    heads = _pick(x.shape[-1], i)
    q, k, v = x, x, x
    if j % 3:
        q, k = net.linear(x, 2 * x.shape[-1]).chunk(2, -1)
    if j % 3 == 2:
        v = net.linear(x, x.shape[-1])
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return x + y if i % 2 else y


@_program_step
def over_time(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    y = net.linear(x.transpose(1, 2), LENGTH).transpose(1, 2)
    return x + torch.tanh(y) if i % 2 else y


@_program_step
def channel_attention(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    scores = (x.transpose(1, 2) @ torch.tanh(net.linear(x, x.shape[-1]))).softmax(-1)
    return x @ (scores if i % 2 else scores.transpose(1, 2))


@_program_step
def hypernetwork(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    weight = net.linear(x.mean(1), x.shape[-1] * 3).view(-1, *((3, x.shape[-1]) if i % 2 else (x.shape[-1], 3)))
    return torch.tanh(x @ (weight.transpose(1, 2) if i % 2 else weight))


@_program_step
def recurrent(net: Program, x: Tensor, i: int, j: int) -> Tensor:
    hidden, y = 1 + i % 4, []
    inner, back = net.weight(hidden, x.shape[-1]), net.weight(hidden, hidden)
    state = x.new_zeros(x.shape[0], hidden)
    for t in range(LENGTH):
        state = torch.tanh(F.linear(x[:, t], inner) + F.linear(state, back))
        y.append(state)
    return torch.stack(y, 1)


def programs(longest: int = 6) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Plans for :class:`Program`."""
    step = st.tuples(st.sampled_from(sorted(_STEPS)), st.integers(0, 11), st.integers(0, 11))
    return st.lists(step, min_size=1, max_size=longest)


# ------------------------------------------------------------------------------------------------- specifications


@st.composite
def specs(draw: Callable[..., Any], deepest: int = 3, largest: int = 4) -> PermutationSpec:
    """A random specification: trees of factors that vary over each other, on axes of random tensors.

    Of each tree some chains from the root are used, such as ``g``, ``(g h)`` and ``(g h d)``. A tensor has them as
    products and sums, any number of times, or one chain spread over several axes.
    """
    sizes: dict[str, int] = {}
    over: dict[str, list[str]] = {}
    chains: list[list[str]] = []
    for root in "abc"[: draw(st.integers(1, 3))]:
        stack = [[root]]
        for depth in range(1, draw(st.integers(1, deepest))):
            # a child of the last factor, or a sister of it
            above = stack[-1][:-1] if depth > 1 and draw(st.booleans()) else stack[-1]
            stack.append([*above, f"{root}{depth}"])
        for chain in stack:
            sizes[chain[-1]], over[chain[-1]] = draw(st.integers(1, largest)), chain[:-1]
        chains += stack
    patterns: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def axis() -> tuple[str, int]:
        kind = draw(st.sampled_from(["pinned", "chain", "chain", "sum"]))
        if kind == "pinned":
            return "_", draw(st.integers(1, 3))
        parts = [draw(st.sampled_from(chains)) for _ in range(1 if kind == "chain" else 2)]
        text = [f"({' '.join(f'{n}={sizes[n]}' for n in chain)})" for chain in parts]
        length = sum(math.prod(sizes[n] for n in chain) for chain in parts)
        if kind == "sum" and draw(st.booleans()):
            return f"({' + '.join(text)} + 2)", length + 2
        return (f"({' + '.join(text)})", length) if kind == "sum" else (text[0], length)

    for i in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 3)) == 0:
            chain = draw(st.permutations(draw(st.sampled_from(chains))))
            axes = [(f"{n}={sizes[n]}", sizes[n]) for n in chain]
            axes.insert(draw(st.integers(0, len(axes))), ("_", 2))
        else:
            axes = [axis() for _ in range(draw(st.integers(1, 2)))]
        patterns[f"w{i}"], shapes[f"w{i}"] = " ".join(text for text, _ in axes), tuple(n for _, n in axes)
    used = {name for pattern in patterns.values() for name in names(parse_pattern(pattern))}
    over = {name: outer for name, outer in over.items() if name in used}
    return PermutationSpec.from_patterns(patterns, {n: torch.empty(shape) for n, shape in shapes.items()}, over=over)
