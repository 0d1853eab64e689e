"""REPAIR: the statistics are what was meant, and folding changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, randomize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autoperm import Evaluator, Repair, discover, interpolate, lerp, repair
from autoperm.errors import ActivationsError, ArchitectureError, EvaluationError, SpecError
from autoperm.repair import Repaired
from autoperm.repair.course import Course
from autoperm.repair.statistics import Statistics, Target

WITHOUT_BATCH_NORM = (
    "mlp mlp_functional residual_mlp layernorm_mlp mixture_dense mixture_topk depthwise_groupnorm groupnorm "
    "instance_norm grouped_conv prelu conv1d dense_concat unet transformer_post transformer_pre gpt perceiver "
    "attention_einsum attention_grouped_sdpa attention_rotary vit"
).split()
WITH_BATCH_NORM = "mlp_batchnorm1d vgg residual_cnn conv3d".split()


def samples(like: Tensor, count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if like.is_floating_point():
        return torch.randn((count, *like.shape[1:]), generator=generator, dtype=like.dtype)
    return torch.randint(int(like.max()) + 1, (count, *like.shape[1:]), generator=generator)


def family(name: str, count: int = 2) -> tuple[list[nn.Module], list[Tensor]]:
    """Models of one architecture, and batches of unequal sizes."""
    network = NETWORKS[name]
    models = [randomize(network.build(), seed) for seed in range(20, 20 + count)]
    return models, list(samples(network.inputs()[0], 40).split(16))


def average(models: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    model = copy.deepcopy(models[0])
    states = [other.state_dict() for other in models]
    mixed = {
        name: sum((w * s[name] for w, s in zip(weights, states, strict=True)), torch.zeros(()).to(value))
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    model.load_state_dict(mixed)
    return model.eval()


def layer_statistics(model: nn.Module, kinds: tuple[type[nn.Module], ...], data: Sequence[Tensor]) -> list[Tensor]:
    """Mean and deviation of what layers of some kinds put out, by hooks: another way than that of the library."""
    seen: dict[nn.Module, list[Tensor]] = {}
    hooks = []
    for module in model.modules():
        if isinstance(module, kinds):
            axis = -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else 1

            def keep(module: nn.Module, args: object, output: Tensor, axis: int = axis) -> None:
                seen.setdefault(module, []).append(output.movedim(axis, 0).flatten(1))

            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        for batch in data:
            model(batch)
    for hook in hooks:
        hook.remove()
    outputs = [torch.cat(found, 1) for found in seen.values()]
    return [part for x in outputs for part in (x.mean(1), x.std(1, correction=0))]


# ------------------------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize("name", [*WITHOUT_BATCH_NORM, *WITH_BATCH_NORM])
def test_the_statistics_are_the_targets(name: str) -> None:
    models, data = family(name)
    weights = (0.3, 0.7)
    model = average(models, weights)
    repaired = repair(model, models, data, weights, bias="scale")
    assert repaired.error <= 1e-4
    assert repaired.layers
    before, after = ([x.shape for x in m.parameters()] for m in (model, repaired.model))
    assert before == after, "the architecture stays"
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), repaired.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp", (nn.Linear,)),
        ("unet", (nn.Conv2d, nn.ConvTranspose2d)),
        ("grouped_conv", (nn.Conv2d,)),
        ("groupnorm", (nn.GroupNorm,)),
        ("layernorm_mlp", (nn.LayerNorm,)),
        ("residual_cnn", (nn.BatchNorm2d,)),
    ],
)
def test_hooks_see_the_targets_too(name: str, kinds: tuple[type[nn.Module], ...], dtype: torch.dtype) -> None:
    models, data = family(name)
    for model in models:
        model.to(dtype)
    data = [batch.to(dtype) for batch in data]
    repaired = repair(average(models, (0.5, 0.5)), models, data).model
    found, first, second = (layer_statistics(model, kinds, data) for model in (repaired, *models))
    last = 0 if "norm" in name or "residual" in name else 2  # what the last layer puts out is not repaired
    for x, a, b in list(zip(found, first, second, strict=True))[: len(found) - last]:
        assert x.dtype == dtype
        torch.testing.assert_close(x, (a + b) / 2, rtol=2e-4, atol=1e-4)


class Bare(nn.Module):
    """Products with parameters of no module, one of them transposed, one a part of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Parameter(torch.empty(6, 12)), nn.Parameter(torch.empty(12))
        self.both, self.shifts = nn.Parameter(torch.empty(20, 12)), nn.Parameter(torch.empty(20))
        self.last = nn.Parameter(torch.empty(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.first + self.shift)
        (w, v), (b, c) = self.both.split(10), self.shifts.split(10)
        y: Tensor = torch.tanh(torch.addmm(b, x, w.t())) * torch.sigmoid(x @ v.t() + c)
        return y @ self.last


def test_products_with_parameters() -> None:
    models: list[nn.Module] = [randomize(Bare().double().eval(), seed) for seed in (1, 2)]
    data = [torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    model = average(models, (0.5, 0.5))
    repaired = repair(model, models, data)
    assert [layer.name for layer in repaired.layers] == ["first", "both", "both"]

    def hidden(model: nn.Module) -> Tensor:
        assert isinstance(model, Bare)
        x = data[0] @ model.first + model.shift
        y = torch.relu(x) @ model.both.t() + model.shifts
        return torch.cat([x, y], 1).detach()

    found, a, b = (hidden(other) for other in (repaired.model, *models))
    for take in (lambda x: x.mean(0), lambda x: x.std(0, correction=0)):
        torch.testing.assert_close(take(found), (take(a) + take(b)) / 2, rtol=1e-8, atol=1e-8)


def test_three_ends() -> None:
    models, data = family("mlp", 3)
    weights = (0.2, 0.3, 0.5)
    repaired = repair(average(models, weights), models, data, weights).model
    found, *ends = (layer_statistics(model, (nn.Linear,), data) for model in (repaired, *models))
    for x, *each in list(zip(found, *ends, strict=True))[:-2]:
        wanted = sum((w * y for w, y in zip(weights, each, strict=True)), torch.zeros_like(x))
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_one_batch_needs_two_sweeps() -> None:
    models, data = family("vit")
    repaired = repair(average(models, (0.5, 0.5)), models, [torch.cat(data)])
    assert repaired.sweeps == 2
    assert repaired.error < 1e-9


def test_layer_by_layer_is_exact() -> None:
    """The first sweep alone is not near enough on batches that differ."""
    models, data = family("transformer_pre")
    batches = [(1 + i) * batch + i for i, batch in enumerate(data)]
    rough = repair(average(models, (0.5, 0.5)), models, batches, tolerance=1e6)
    exact = repair(average(models, (0.5, 0.5)), models, batches, tolerance=1e-8)
    assert (rough.sweeps, rough.error > 1e-3) == (2, True)
    assert (exact.sweeps > 2, exact.error < 1e-8) == (True, True)


def test_only_some_batches() -> None:
    models, data = family("mlp")
    middle = average(models, (0.5, 0.5))
    some = repair(middle, models, data, batches=1).model.state_dict()
    torch.testing.assert_close(some, repair(middle, models, data[:1]).model.state_dict(), rtol=0, atol=0)


# ----------------------------------------------------------------------------------- what must not change, does not


@pytest.mark.parametrize("name", ["mlp", "vit", "residual_cnn", "unet"])
def test_nothing_changes_at_the_ends(name: str) -> None:
    models, data = family(name)
    for i, end in enumerate(models):
        weights = [float(i == j) for j in range(2)]
        repaired = repair(end, models, data, weights)
        torch.testing.assert_close(repaired.model.state_dict(), end.state_dict(), rtol=1e-10, atol=1e-10)
        assert repaired.sweeps == 2


def test_nothing_changes_between_equal_ends() -> None:
    models, data = family("transformer_post", 1)
    repaired = repair(models[0], 3 * models, data)
    torch.testing.assert_close(repaired.model.state_dict(), models[0].state_dict(), rtol=1e-10, atol=1e-10)


def test_inputs_are_not_changed() -> None:
    models, data = family("residual_cnn")
    middle = average(models, (0.5, 0.5)).train()
    before = copy.deepcopy([model.state_dict() for model in (middle, *models)])
    kept = [batch.clone() for batch in data]
    repaired = repair(middle, models, data).model
    for model, state in zip((middle, *models), before, strict=True):
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(data, kept, rtol=0, atol=0)
    assert all(module.training for module in repaired.modules()), "modes are kept"


@pytest.mark.parametrize("name", ["mlp", "grouped_conv", "unet", "vit", "residual_cnn"])
def test_permuting_all_models_permutes_the_repaired_one(name: str) -> None:
    models, data = family(name)
    middle = average(models, (0.5, 0.5))
    permutation = discover(middle, data[0]).random(4)
    plain = repair(middle, models, data, tolerance=1e-9).model
    moved = repair(permutation.apply(middle), [permutation.apply(m) for m in models], data, tolerance=1e-9).model
    torch.testing.assert_close(moved.state_dict(), permutation.apply(plain).state_dict(), rtol=1e-6, atol=1e-6)


def test_what_rounding_leaves_is_said() -> None:
    models, data = family("mlp")
    for model in models:
        model.to(torch.bfloat16)
    middle, batches = average(models, (0.5, 0.5)), [batch.bfloat16() for batch in data]
    bound = Repair(batches).bind(models)
    assert bound.tolerance == 8 * 2**-7
    bound.tolerance = 1e-6
    with pytest.warns(UserWarning, match=r"REPAIR left '\d' .* of a deviation from its target, more than"):
        repaired = bound.repair(copy.deepcopy(middle), (0.5, 0.5))
    assert repaired.error > repaired.tolerance == 1e-6
    assert "of a deviation, above the tolerance of 1e-06, after" in str(repaired)


def test_folding_is_the_affine_correction() -> None:
    """The folded model computes what the one with explicit corrections after its layers computes."""
    models, data = family("mlp")
    middle = average(models, (0.5, 0.5))
    x = torch.cat(data)
    assert isinstance(middle, nn.Sequential)
    with torch.no_grad():
        y, ends = x, [x, x]
        for place, layer in enumerate(middle):
            y = layer(y)
            ends = [list(model.children())[place](z) for model, z in zip(models, ends, strict=True)]
            if isinstance(layer, nn.Linear) and place < len(middle) - 1:
                mean = sum(z.mean(0) for z in ends) / 2
                deviation = sum(z.std(0, correction=0) for z in ends) / 2
                y = (y - y.mean(0)) * deviation / y.std(0, correction=0) + mean
        torch.testing.assert_close(repair(middle, models, data, tolerance=1e-9).model(x), y, rtol=1e-6, atol=1e-6)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=25)
def test_any_dense_network(widths: list[int], share: float, seed: int, sizes: list[int]) -> None:
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        inputs = width
    build = nn.Sequential(*layers, nn.Linear(inputs, 2)).double().eval()
    models = [randomize(copy.deepcopy(build), seed + i) for i in range(2)]
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(size, 3, dtype=torch.float64, generator=generator) for size in sizes]
    weights = (1 - share, share)
    repaired = repair(average(models, weights), models, data, weights)
    assert repaired.error <= 1e-4
    assert len(repaired.layers) == len(widths)


# ------------------------------------------------------------------------------------------------------ odd channels


def test_dead_channels_are_shifted() -> None:
    models, data = family("mlp")
    middle = average(models, (0.5, 0.5))
    with torch.no_grad():
        for model in (middle, *models):
            layer = next(model.children())
            assert isinstance(layer, nn.Linear)
            layer.weight[0] = 0
        models[0].get_parameter("0.weight")[1] = 0
        middle.get_parameter("0.weight")[2] = 0
        middle.get_parameter("0.bias")[:3] += 1
    repaired = repair(middle, models, data)
    assert (repaired.dead, repaired.layers[0].dead) == (2, 2)
    assert "dead:     2 channels do not vary" in str(repaired)
    assert repaired.error <= 1e-4
    mean, deviation = layer_statistics(repaired.model, (nn.Linear,), data)[:2]
    ends = [layer_statistics(model, (nn.Linear,), data)[:2] for model in models]
    torch.testing.assert_close(mean, (ends[0][0] + ends[1][0]) / 2, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(deviation[1], (ends[0][1][1] + ends[1][1][1]) / 2, rtol=1e-6, atol=1e-6)
    assert deviation[0] == deviation[2] == 0


def test_low_precision() -> None:
    models, data = family("mlp")
    for model in models:
        model.to(torch.bfloat16)
    repaired = repair(average(models, (0.5, 0.5)), models, [batch.bfloat16() for batch in data])
    assert next(repaired.model.parameters()).dtype == torch.bfloat16
    assert repaired.error < 0.1


def test_nan_names_the_layer() -> None:
    models, data = family("mlp")
    models[1].get_parameter("2.bias").data[0] = float("nan")
    with pytest.raises(ActivationsError, match=r"NaN or infinite values in the output of 2 \(linear\)"):
        repair(average(models, (1.0, 0.0)), models, data)


# -------------------------------------------------------------------------------------------------------------- paths


def test_a_path() -> None:
    models, data = family("mlp")
    targets = torch.zeros(40, dtype=torch.long)
    evaluate = Evaluator(DataLoader(TensorDataset(torch.cat(data), targets), batch_size=20))
    by_name = interpolate(models[0], models[1], evaluate, points=3, renormalize="repair", data=data)
    by_object = interpolate(models[0], models[1], evaluate, points=3, renormalize=Repair(data))
    assert by_name == by_object
    plain = interpolate(models[0], models[1], evaluate, points=3)
    middle = average(models, (0.5, 0.5))
    expected = [evaluate(models[0]), evaluate(repair(middle, models, data).model), evaluate(models[1])]
    assert by_name.metrics["loss"] == pytest.approx([row["loss"] for row in expected])
    assert by_name.metrics["loss"][1] != pytest.approx(plain.metrics["loss"][1])


def test_a_path_with_biases_added() -> None:
    models = [randomize(nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)), i) for i in range(2)]
    data = [torch.randn(30, 3, generator=torch.Generator().manual_seed(0))]
    targets = torch.zeros(30, dtype=torch.long)
    evaluate = Evaluator([(data[0], targets)])
    curve = interpolate(*models, evaluate, points=3, renormalize=Repair(data, bias="add"))
    middle = copy.deepcopy(models[0])
    middle.load_state_dict(lerp(models[0].state_dict(), models[1].state_dict(), 0.5))
    expected = repair(middle, models, data, bias="add")
    assert curve.metrics["loss"][1] == pytest.approx(evaluate(expected.model)["loss"])
    assert curve.metrics["loss"][2] == pytest.approx(evaluate(models[1])["loss"])


def test_it_prints_as_a_report() -> None:
    models, data = family("mlp")
    text = str(repair(average(models, (0.5, 0.5)), models, data))
    assert text.startswith("REPAIR of Sequential\n  repaired: 30 channels of 3 layers\n")
    assert "6  its output is the model's" in text


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("weights", [(0.5,), (0.0, 0.0), (-0.5, 1.5), (0.2, 0.3, 0.5)])
def test_weights_that_do_not_fit(weights: tuple[float, ...]) -> None:
    models, data = family("mlp")
    with pytest.raises(SpecError, match=r"weights for 2 models; give one for each|not negative, nor all 0"):
        repair(models[0], models, data, weights)
    with pytest.raises(SpecError, match="must be 2 numbers of at least 0 that sum to 1"):
        Repair(data).bind(models)(models[0], weights)


def test_weights_are_shares() -> None:
    models, data = family("mlp")
    middle = average(models, (0.75, 0.25))
    state = repair(middle, models, data, (0.75, 0.25)).model.state_dict()
    torch.testing.assert_close(repair(middle, models, data, (3, 1)).model.state_dict(), state, rtol=0, atol=0)


def test_means_count_as_deviations_do() -> None:
    models, data = family("mlp")
    bound = Repair(data).bind(models)
    shifted = copy.deepcopy(models[0]).eval()
    first = bound.runs.layers[0]
    assert first.bias is not None
    first.bias.within(shifted).add_(1.0)
    course = Course(
        bound.runs, shifted, {layer: Target.between([bound.totals[0][layer]], [1.0]) for layer in bound.runs.layers}
    )
    course.check()
    layer = course.described()[0]
    torch.testing.assert_close(course.found[first].deviation, course.targets[first].deviation)
    assert layer.error == pytest.approx(float((1 / course.targets[first].deviation).max()))


def test_weights_in_a_tensor() -> None:
    models, data = family("mlp")
    model = average(models, (0.25, 0.75))
    found, expected = (repair(model, models, data, weights) for weights in (torch.tensor([0.25, 0.75]), (0.25, 0.75)))
    torch.testing.assert_close(found.model.state_dict(), expected.model.state_dict())


def test_bad_input() -> None:
    models, data = family("mlp")
    other = family("mlp_functional")[0][0]
    with pytest.raises(ArchitectureError, match="do not have the same architecture"):
        repair(models[0], [models[0], other], data)
    with pytest.raises(ArchitectureError, match="do not have the same architecture"):
        repair(other, models, data)
    with pytest.raises(SpecError, match="no ends"):
        repair(models[0], [], data)
    with pytest.raises(EvaluationError, match="no batches"):
        repair(models[0], models, [])
    with pytest.raises(EvaluationError, match="read only once"):
        Repair(iter(data))
    with pytest.raises(EvaluationError, match="does not run on a batch"):
        repair(models[0], models, [torch.zeros(2, 3)])
    with pytest.raises(SpecError, match="batches is 0"):
        Repair(data, batches=0)
    with pytest.raises(SpecError, match="tolerance is 0"):
        Repair(data, tolerance=0)
    with pytest.raises(SpecError, match="no bias='ignore'; choose 'error', 'scale', 'add', 'skip'"):
        Repair(data, bias="ignore")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- statistics


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 1000))
def test_statistics_of_parts_add_up(sizes: list[int], seed: int) -> None:
    x = torch.randn(sum(sizes), 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1000
    first, *rest = (Statistics.of(part, [1]) for part in x.split(sizes))
    for other in rest:
        first = first + other
    assert first.count == 2 * len(x)
    if len(x):
        torch.testing.assert_close(first.mean, x.mean((0, 2)))
        torch.testing.assert_close(first.deviation, x.std((0, 2), correction=0), rtol=1e-9, atol=1e-9)


def test_the_result_says_what_was_reached() -> None:
    models, data = family("mlp")
    repaired = repair(average(models, (0.5, 0.5)), models, data)
    assert isinstance(repaired, Repaired)
    assert repaired.error == max(layer.error for layer in repaired.layers)
    assert [(layer.name, layer.op, layer.channels) for layer in repaired.layers] == [
        ("0", "aten.linear", 12),
        ("2", "aten.linear", 10),
        ("4", "aten.linear", 8),
    ]
    assert all(layer.scale > 1 for layer in repaired.layers), "averaging independent models loses variance"
