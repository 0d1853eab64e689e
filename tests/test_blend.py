"""State dicts: interpolation, and the checks before it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoperm.blend import angle, average, lerp, slerp, taken_from_first
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


# --- slerp --------------------------------------------------------------------------------------------------------


def random_state(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (4, 3), "v": (5,), "s": ()}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }


def flat(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


@given(st.integers(0, 100), st.floats(0, 1))
def test_slerp_is_over_one_long_vector(seed: int, lam: float) -> None:
    a, b = random_state(seed), random_state(seed + 1000)
    x, y = flat(a), flat(b)
    omega = torch.arccos(x @ y / (x.norm() * y.norm()))
    expected = torch.sin((1 - lam) * omega) / torch.sin(omega) * x + torch.sin(lam * omega) / torch.sin(omega) * y
    torch.testing.assert_close(flat(slerp(a, b, lam)), expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 100), st.floats(0, 1))
def test_slerp_keeps_a_common_norm(seed: int, lam: float) -> None:
    a = random_state(seed)
    b = random_state(seed + 1000)
    scale = flat(a).norm() / flat(b).norm()
    found = slerp(a, {name: scale * tensor for name, tensor in b.items()}, lam)
    torch.testing.assert_close(flat(found).norm(), flat(a).norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_slerp_ends_are_bitwise_in_every_dtype(dtype: torch.dtype) -> None:
    a, b = random_state(0, dtype), random_state(1, dtype)
    torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=0, atol=0)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=0, atol=0)
    expected = slerp({n: x.double() for n, x in a.items()}, {n: x.double() for n, x in b.items()}, 0.3)
    torch.testing.assert_close(slerp(a, b, 0.3), {n: x.to(dtype) for n, x in expected.items()})


def test_slerp_of_complex_tensors_is_that_of_their_parts() -> None:
    a, b = (torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    found = slerp({"w": torch.view_as_complex(a)}, {"w": torch.view_as_complex(b)}, 0.4)["w"]
    torch.testing.assert_close(torch.view_as_real(found), slerp({"w": a}, {"w": b}, 0.4)["w"])


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0])
def test_slerp_of_parallel_vectors_is_linear(factor: float) -> None:
    a = random_state(0)
    b = {name: factor * tensor for name, tensor in a.items()}
    torch.testing.assert_close(slerp(a, b, 0.3), lerp(a, b, 0.3), rtol=0, atol=0)


def test_slerp_tends_to_lerp_as_the_angle_falls() -> None:
    a, step = random_state(0), random_state(1)
    for size in (1e-3, 1e-5, 1e-7):
        b = {name: tensor + size * step[name] for name, tensor in a.items()}
        torch.testing.assert_close(slerp(a, b, 0.3), lerp(a, b, 0.3), rtol=10 * size**2 + 1e-12, atol=0)


def test_slerp_of_opposite_vectors() -> None:
    a = random_state(0)
    with pytest.raises(WeightsError, match=r"are opposite.*use lerp"):
        slerp(a, {name: -2 * tensor for name, tensor in a.items()}, 0.5)


def test_slerp_leaves_out_what_is_linear_and_integers() -> None:
    a = {"w": vector(1, 0), "var": vector(4.0), "n": torch.tensor(1)}
    b = {"w": vector(0, 1), "var": vector(8.0), "n": torch.tensor(2)}
    found = slerp(a, b, 0.5, linear=["var"])
    torch.testing.assert_close(found, {"w": vector(1, 1) / math.sqrt(2), "var": vector(6.0), "n": torch.tensor(1)})


def test_angles_are_measured_in_double_precision() -> None:
    ones = torch.ones(3 << 20)
    other = ones.clone()
    other[0] = 11.0  # lost in a sum of three million in single precision
    expected = math.acos((len(ones) + 10) / math.sqrt(len(ones) * (len(ones) + 120.0)))
    assert angle({"w": ones}, {"w": other}, ["w"]) == pytest.approx(expected, rel=1e-8)


# --- average ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10), min_size=2, max_size=5).filter(lambda weights: sum(weights) > 0.1))
def test_average_is_the_weighted_mean(weights: list[float]) -> None:
    states = [random_state(seed) for seed in range(len(weights))]
    expected = sum(weight * flat(state) for weight, state in zip(weights, states, strict=True)) / sum(weights)
    torch.testing.assert_close(flat(average(states, weights)), expected, rtol=1e-12, atol=1e-12)


def test_average_weighs_all_alike_by_default() -> None:
    states = [random_state(seed) for seed in range(4)]
    torch.testing.assert_close(average(states), average(states, (1, 1, 1, 1)), rtol=0, atol=0)
    torch.testing.assert_close(flat(average(states)), torch.stack(list(map(flat, states))).mean(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_average_of_two_is_lerp_bitwise(dtype: torch.dtype, lam: float) -> None:
    a, b, c = (random_state(seed, dtype) for seed in range(3))
    torch.testing.assert_close(average([a, b], (1 - lam, lam)), lerp(a, b, lam), rtol=0, atol=0)
    torch.testing.assert_close(average([a, c, b], (1 - lam, 0, lam)), lerp(a, b, lam), rtol=0, atol=0)


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6))
def test_average_of_equals_is_exact(weights: list[float]) -> None:
    a = random_state(0)
    torch.testing.assert_close(average([a] * len(weights), weights), a, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_average_in_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    states = [random_state(seed, dtype) for seed in range(9)]
    expected = average([{name: tensor.float() for name, tensor in state.items()} for state in states])
    torch.testing.assert_close(average(states), {n: x.to(dtype) for n, x in expected.items()}, rtol=0, atol=0)


def test_average_takes_integers_from_the_first_and_shares_nothing() -> None:
    states = [{"w": torch.zeros(2), "n": torch.tensor(i)} for i in range(3)]
    found = average(states)
    torch.testing.assert_close(found["n"], torch.tensor(0))
    assert taken_from_first(found) == ("n",)
    found["w"].fill_(9)
    found["n"].fill_(9)
    torch.testing.assert_close(states[0], {"w": torch.zeros(2), "n": torch.tensor(0)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.double(), r"model 0 \(A\) and model 2 \(B\)[\s\S]*w: torch\.float32 in A, torch\.float64 in B"),
        (lambda w: w.to("meta"), r"model 0 \(A\) and model 2 \(B\)[\s\S]*w: on cpu in A, on meta in B"),
        (lambda w: w[:1], r"model 0 \(A\) and model 2 \(B\)[\s\S]*w: shape \(2,\) in A, \(1,\) in B"),
    ],
)
def test_average_says_which_model_is_another(change: Callable[[Tensor], Tensor], message: str) -> None:
    w = torch.zeros(2)
    with pytest.raises(ArchitectureError, match=message):
        average([{"w": w}, {"w": w}, {"w": change(w)}])


def test_average_checks_its_weights() -> None:
    states = [random_state(seed) for seed in range(3)]
    with pytest.raises(SpecError, match="2 weights for 3 models"):
        average(states, (1, 1))
    for weights in ((1, -1, 1), (0, 0, 0), (1, math.nan, 1), (1, math.inf, 1), (1e308, 1e308, 1)):
        with pytest.raises(SpecError, match="must be finite and not negative, nor all 0"):
            average(states, weights)
    for odd in (0.5, "abc", [None, 1, 1]):
        with pytest.raises(SpecError, match=r"the weights are .*, but must be 3 numbers"):
            average(states, odd)  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="2 models or more is needed, and got 1"):
        average(states[:1])


# --- checks -------------------------------------------------------------------------------------------------------


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
