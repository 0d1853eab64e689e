"""What the benchmarks of matching judge by is right."""

import gzip
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autoperm import Permutation, PermutationSpec, discover

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import matching
import recovery
from barriers import read_cifar, read_mnist
from matchers import FREE, Data, run
from models import MODELS, ResNet20, mlp
from page import fill, table


@pytest.fixture(scope="module")
def spec() -> PermutationSpec:
    return discover(mlp(8, (32, 24), 3), torch.randn(2, 8))


def swapped(spec: PermutationSpec, name: str) -> Permutation:
    """Exchange the first two units of a factor."""
    index = spec.identity()[name].clone()
    index[:2] = torch.tensor([1, 0])
    return Permutation(spec, {name: index})


def test_what_is_recovered_is_seen_in_the_permutation_and_in_the_weights(spec: PermutationSpec) -> None:
    """rebasin hands out weights alone."""
    model = mlp(8, (32, 24), 3)
    a = {name: tensor.detach() for name, tensor in model.named_parameters()}
    names = [factor.name for factor in spec.free]
    for permutation in (spec.identity(), swapped(spec, names[0]), swapped(spec, names[1]), spec.random(0)):
        assert matching.restored(spec, a, permutation.apply(a)) == matching.fixed(permutation)
    assert matching.fixed(swapped(spec, names[0])) == 1 - 2 / 56


def test_the_objective_of_a_model_with_itself_is_one(spec: PermutationSpec) -> None:
    a = {name: tensor.detach() for name, tensor in mlp(8, (32, 24), 3).named_parameters()}
    assert matching.objectives(spec, a, a) == pytest.approx({"linear": 1.0, "cosine": 1.0})
    moved = {name: 2 * tensor for name, tensor in spec.random(0).apply(a).items()}
    assert all(value < 0.9 for value in matching.objectives(spec, a, moved).values())


@pytest.mark.parametrize("method", list(FREE))
def test_a_matcher_that_is_here_finds_what_was_planted(spec: PermutationSpec, method: str) -> None:
    matcher = FREE[method](Data([], torch.nn.functional.cross_entropy))
    model, planted = mlp(8, (32, 24), 3), spec.random(0)
    found = run(matcher, spec, model, planted.apply(model))
    if method not in ("naive", "greedy"):
        assert found.compose(planted).is_identity
    if method == "naive":
        assert found.is_identity


@pytest.mark.parametrize("method", recovery.METHODS)
def test_a_permutation_is_planted_and_found(spec: PermutationSpec, method: str) -> None:
    network = recovery.Network("", lambda: mlp(8, (32, 24), 3), lambda seed: torch.randn(2, 8))
    found = recovery.recover(network, recovery.METHODS[method], spec, 0.1, 0)
    assert (found.exact, found.fixed, found.above) == (True, 1.0, False)
    lost = recovery.recover(network, recovery.METHODS[method], spec, 30.0, 0)
    assert (lost.exact, lost.above) == (False, True)
    assert lost.fixed < 0.5
    assert recovery.cell([found, found]) == "2 of 2"
    assert recovery.cell([lost]) == f"0 of 1 ({lost.fixed:.1%}), 1 above"


def test_noise_leaves_the_model_and_its_ties_alone() -> None:
    model = recovery.fresh(lambda: recovery.small_gpt(tied=True), 0)
    norm, head = model.layers[0].norm1.weight, model.head.weight
    assert norm.std() > 0.05
    other = recovery.noisy(model, 0.3, 1)
    assert other.head.weight is other.tokens.weight
    for tensor, noisy in ((norm, other.layers[0].norm1.weight), (head, other.head.weight)):
        assert ((noisy - tensor).std() / tensor.std()).item() == pytest.approx(0.3, rel=0.2)
    assert torch.equal(recovery.noisy(model, 0.0, 1).head.weight, head)


def test_the_floor_counts_products_and_assignments(spec: PermutationSpec) -> None:
    model, other = mlp(8, (32, 24), 3), mlp(8, (32, 24), 3)
    with matching.Products() as products:
        torch.zeros(2, 3) @ torch.zeros(3, 4)
        torch.zeros(5, 2, 4).baddbmm_(torch.zeros(5, 2, 3), torch.zeros(5, 3, 4))
        torch.zeros(5, 2, 4) + 1
    assert {(tuple(left), tuple(right)) for left, right, _ in products.found} == {
        ((2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
    }
    matcher = FREE["weight"](Data([], torch.nn.functional.cross_entropy))
    before = matching.nested.assign
    record = matching.floor(lambda: run(matcher, spec, model, other))
    assert matching.nested.assign is before
    assert record.keys() == {"products", "assignments", "scipy"}
    assert min(record.values()) > 0


def test_a_model_of_its_published_size() -> None:
    """Hand-written specifications of ResNet20 have 12 permutations."""
    spec = discover(ResNet20().eval(), MODELS["resnet20"].inputs(0))
    assert len(spec.groups) == 12
    assert not spec.unknown


def test_a_table_is_put_in_its_place_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- here -->\n<!-- end of here -->\n\nafter\n", encoding="utf-8")
    for cell in "xy":
        fill(page, "here", table(["a", "b"], [[cell, "1"]]))
    assert page.read_text(encoding="utf-8") == (
        "before\n\n<!-- here -->\n\n| a | b |\n| --- | --- |\n| y | 1 |\n\n<!-- end of here -->\n\nafter\n"
    )
    with pytest.raises(SystemExit, match="there"):
        fill(page, "there", "text")


def test_images_are_read(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": pixels, b"labels": [3, 7]}))
    images, classes = read_cifar(tmp_path / "batch", 2).tensors
    assert classes.tolist() == [3, 7]
    assert float(images[1, 2, 0, 1]) == pytest.approx((int(pixels[1, 2049]) / 255 - 0.4465) / 0.2616, abs=1e-5)

    bytes_of = {"images-idx3-ubyte": bytes(16) + bytes(783) + bytes([255]), "labels-idx1-ubyte": bytes(8) + bytes([5])}
    for kind, content in bytes_of.items():
        (tmp_path / f"t10k-{kind}.gz").write_bytes(gzip.compress(content))
    images, classes = read_mnist(tmp_path, "t10k", 1).tensors
    assert classes.tolist() == [5]
    torch.testing.assert_close(images[0, [0, 783]], torch.tensor([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081]))
