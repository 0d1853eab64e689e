"""Members that take turns along an axis: ``(a | b)``."""

from __future__ import annotations

import pytest
import torch
from networks import floats, randomize
from torch import Tensor, nn

from autoperm import PermutationSpec, discover, weight_matching
from autoperm.axes import unify
from autoperm.cutting import cut, restrict
from autoperm.signature import format_pattern
from autoperm.terms import factor, find, parts_of


class Shuffle(nn.Module):
    """Two branches, joined and shuffled as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.c, self.d = nn.Conv2d(12, 5, 3), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x).relu(), self.b(x).tanh()], 1)
        return self.d(self.c(nn.functional.channel_shuffle(joined, 2)).relu())


class Turns(nn.Module):
    """Three parts between heads and channels, that nothing ties to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(7, 4 * 3 * 5)
        self.q, self.k, self.v = nn.Linear(20, 2), nn.Linear(20, 2), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 4, 3, 5).unbind(2)
        return sum(layer(part.softmax(-1).flatten(1)) for layer, part in ((self.q, q), (self.k, k), (self.v, v)))


class Twice(nn.Module):
    """Three branches, of which two are joined and shuffled before they are joined and shuffled with the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv1d(3, size, 1) for size in (3, 3, 6))
        self.d, self.e = nn.Conv1d(12, 5, 1), nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.channel_shuffle(torch.cat([self.a(x).relu(), self.b(x).tanh()], 1), 2)
        outer = nn.functional.channel_shuffle(torch.cat([inner, self.c(x).sin()], 1), 2)
        return self.e(self.d(outer).relu())


class AcrossRows(nn.Module):
    """A shuffle that is cut where one branch has had one turn more than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 7, 1), nn.Conv1d(3, 7, 1)
        self.d, self.e = nn.Conv1d(7, 2, 1), nn.Conv1d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = nn.functional.channel_shuffle(torch.cat([self.a(x).relu(), self.b(x).tanh()], 1), 2)
        left, right = joined.chunk(2, 1)
        return self.d(left) + self.e(right).relu()


CASES = {
    "shuffle": (Shuffle, floats(2, 3, 8, 8), "c.weight", "c (a | b) _ _"),
    "twice": (Twice, floats(2, 3, 8), "d.weight", "d ((a | b) | c) 1"),
    "across rows": (AcrossRows, floats(2, 3, 8), "d.weight", "_ ((a | c) + 1) 1"),
    "turns": (Turns, floats(3, 7), "qkv.weight", "((a b) | (c d) | (e f)) _"),
}


@pytest.mark.parametrize("name", CASES)
def test_members_in_turns_are_found_kept_and_matched(name: str) -> None:
    build, inputs, tensor, pattern = CASES[name]
    model = randomize(build().double().eval())
    spec = discover(model, inputs())
    assert format_pattern(spec.patterns[tensor]) == pattern
    assert spec.verify(model, inputs(), draws=5, tolerance=1e-9) <= 1e-9
    assert PermutationSpec.from_json(spec.to_json()) == spec
    planted = spec.random(3)
    found = weight_matching(spec, model.state_dict(), planted.apply(model.state_dict()))
    assert found.permutation == planted.inverse()


def test_a_pattern_in_turns_is_read_by_hand() -> None:
    spec = PermutationSpec.from_patterns({"weight": "(a | b) _", "bias": "(a | b)"}, nn.Linear(2, 6))
    assert {name: f.size for name, f in spec.factors.items()} == {"a": 3, "b": 3}
    moved = spec.random(0).apply({"weight": torch.arange(12.0).reshape(6, 2), "bias": torch.arange(6.0)})
    assert {int(v) % 2 for v in moved["bias"][::2]} == {0}, "the units of a stay at even places"


def test_a_family_equal_to_its_own_member_collapses() -> None:
    """This made a term that contained itself."""
    a, b = factor(3), factor(3)
    _, handles = cut(a, 1, 3)
    member = restrict(b, handles)
    unify(a, b)
    unify(member, a)
    assert sum(part.size for part in parts_of(a)) == 3
    assert find(member).size == 3
