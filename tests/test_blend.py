"""State dicts: interpolation, and the checks before it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoperm.blend import lerp
from autoperm.errors import ArchitectureError, SpecError, WeightsError
from autoperm.state import check_finite, check_same_architecture, check_same_indices, tensors

floats = st.floats(-1e6, 1e6, width=64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int64)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=5), st.floats(0, 1))
def test_lerp_follows_its_equation(pairs: list[tuple[float, float]], lam: float) -> None:
    a, b = (vector(*column) for column in zip(*pairs, strict=True))
    torch.testing.assert_close(lerp({"w": a}, {"w": b}, lam)["w"], (1 - lam) * a + lam * b, rtol=1e-12, atol=1e-9)


@given(st.lists(floats, min_size=1, max_size=5), st.floats(0, 1))
def test_lerp_between_equals_is_exact(values: list[float], lam: float) -> None:
    a = vector(*values)
    torch.testing.assert_close(lerp({"w": a}, {"w": a.clone()}, lam)["w"], a, rtol=0, atol=0)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=5))
def test_lerp_ends_are_bitwise(pairs: list[tuple[float, float]]) -> None:
    a, b = (vector(*column) for column in zip(*pairs, strict=True))
    assert torch.equal(bits(lerp({"w": a}, {"w": b}, 0.0)["w"]), bits(a))
    assert torch.equal(bits(lerp({"w": a}, {"w": b}, 1.0)["w"]), bits(b))


def test_lerp_keeps_the_sign_of_zero_at_the_ends() -> None:
    zero, one = {"w": vector(-0.0)}, {"w": vector(1.0)}
    assert math.copysign(1, lerp(zero, one, 0.0)["w"].item()) == -1
    assert math.copysign(1, lerp(one, zero, 1.0)["w"].item()) == -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_lerp_keeps_dtypes(dtype: torch.dtype) -> None:
    a, b = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    torch.testing.assert_close(lerp({"w": a}, {"w": b}, 0.5)["w"], torch.full((3,), 0.5, dtype=dtype))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_lerp_takes_integers_and_booleans_from_a(lam: float) -> None:
    a = {"count": torch.tensor(3), "mask": torch.tensor([True, False])}
    b = {"count": torch.tensor(7), "mask": torch.tensor([False, False])}
    merged = lerp(a, b, lam)
    torch.testing.assert_close(merged, a)
    assert merged["count"] is not a["count"]


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_lerp_shares_no_memory_with_its_inputs(lam: float) -> None:
    a, b = {"w": torch.zeros(2), "n": torch.tensor(1)}, {"w": torch.ones(2), "n": torch.tensor(2)}
    for tensor in lerp(a, b, lam).values():
        tensor.fill_(9)
    torch.testing.assert_close(a, {"w": torch.zeros(2), "n": torch.tensor(1)})
    torch.testing.assert_close(b, {"w": torch.ones(2), "n": torch.tensor(2)})


def test_lerp_of_parameters_has_no_gradient() -> None:
    a, b = (dict(nn.Linear(2, 2).named_parameters()) for _ in range(2))
    assert not any(tensor.requires_grad for tensor in lerp(a, b, 0.5).values())


def test_lerp_of_tied_tensors() -> None:
    w = torch.zeros(2)
    merged = lerp({"in": w, "out": w}, {"in": torch.ones(2), "out": torch.ones(2)}, 0.5)
    torch.testing.assert_close(merged["in"], merged["out"])


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan"), float("inf")])
def test_lerp_rejects_positions_off_the_path(lam: float) -> None:
    with pytest.raises(SpecError, match=re.escape("is in [0, 1]")):
        lerp({"w": torch.zeros(1)}, {"w": torch.zeros(1)}, lam)


def test_architecture_names_and_shapes_are_listed() -> None:
    a = {"w": torch.zeros(2, 3), "only_a": torch.zeros(1), "d": torch.zeros(1), "same": torch.zeros(1)}
    b = {"w": torch.zeros(2, 4), "only_b": torch.zeros(5), "d": torch.zeros(1).double(), "same": torch.zeros(1)}
    with pytest.raises(ArchitectureError) as caught:
        check_same_architecture(a, b)
    assert str(caught.value).splitlines()[1:-1] == [
        "  only_a: only in A, with shape (1,)",
        "  only_b: only in B, with shape (5,)",
        "  w: shape (2, 3) in A, (2, 4) in B",
        "  d: torch.float32 in A, torch.float64 in B",
    ]


def test_architecture_long_listings_are_cut() -> None:
    with pytest.raises(ArchitectureError, match="and 12 more"):
        check_same_architecture({f"w{i}": torch.zeros(1) for i in range(20)}, {})


def test_architecture_devices() -> None:
    with pytest.raises(ArchitectureError, match=re.escape("w: on cpu in A, on meta in B")):
        check_same_architecture({"w": torch.zeros(1)}, {"w": torch.zeros(1, device="meta")})


def test_architecture_order_does_not_matter() -> None:
    a, b = {"v": torch.zeros(1), "w": torch.ones(1)}, {"w": torch.ones(1), "v": torch.zeros(1)}
    check_same_architecture(a, b)
    assert list(lerp(a, b, 0.5)) == ["v", "w"]


def test_indices_that_differ_are_named() -> None:
    a = {"mask": torch.tensor([True, False]), "count": torch.tensor(1)}
    b = {"mask": torch.tensor([True, True]), "count": torch.tensor(2)}
    with pytest.raises(ArchitectureError, match=re.escape("mask: torch.bool, shape (2,)")):
        check_same_indices(a, b)
    check_same_indices(a, {**b, "mask": a["mask"].clone()})


def test_finite_counts_by_name() -> None:
    state = {"good": torch.zeros(2), "bad": vector(1.0, math.nan, math.inf, -math.inf), "n": torch.tensor(1)}
    with pytest.raises(WeightsError) as caught:
        check_finite(state, "model B")
    assert str(caught.value).splitlines()[:2] == ["model B has NaN or infinite values:", "  bad: 3 of 4 values"]
    assert "good" not in str(caught.value)


def test_tensors_leaves_out_extra_state() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: object) -> None: ...

    assert sorted(tensors(Extra(1, 1))) == ["bias", "weight"]
