"""What two other tools find on one model, judged in the same way: rebasin and torch-pruning, from PyPI.

Both are used as their README says. rebasin gets a random permutation for each that it would match, and applies them
with its own code. torch-pruning finds channels that must be removed together, so one of its groups is read as: these
channels may be permuted together. Layers with blocks of channels (grouped convolutions, GroupNorm) get the same
permutation in every block, which is how its own pruners keep them apart.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from importlib.metadata import version
from math import lgamma, log
from types import ModuleType
from typing import Any

import torch
from coverage_worker import ROUNDING, Record, describe, randomise
from torch import Tensor, nn

from autoperm.equivalence import difference, outputs

DRAWS = 2


def log10_factorial(n: int) -> float:
    """Return the logarithm of the number of permutations of n units."""
    return lgamma(n + 1) / log(10)


def with_batch_statistics(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model whose BatchNorm takes its statistics from the batch, as after re-estimating them on it."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
    with torch.no_grad():
        result: Tensor = model(x)
    return result


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has BatchNorm layers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def measure_rebasin(zoo: ModuleType, suite: str, name: str) -> Record:
    """Permute a model by rebasin, at random, and compare; with BatchNorm's statistics re-estimated too, as it asks."""
    from rebasin import PermutationCoordinateDescent

    entry = zoo.get(suite, name)
    a = randomise(entry.builder()).double()
    (x,) = (value.double() for value in entry.example_inputs_fn())
    reference = outputs(a, (x,))
    error = error_batch = 0.0
    sizes: list[int] = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        b = copy.deepcopy(a)
        descent = PermutationCoordinateDescent(a, b, x)
        found = [permutation for permutation, _ in descent.pinit.model_graph.permutation_to_info]
        sizes = [len(permutation) for permutation in found]
        for permutation in found:
            permutation.perm_indices = torch.randperm(len(permutation))
        descent.apply_permutations()
        error = max(error, difference(reference, outputs(b, (x,))))
        if has_batch_norm(a):
            error_batch = max(error_batch, difference([with_batch_statistics(a, x)], [with_batch_statistics(b, x)]))
    return {
        "status": "ran",
        "groups": len(sizes),
        "log10_order": sum(map(log10_factorial, sizes)),
        "error": error,
        "error_batch_statistics": error_batch if has_batch_norm(a) else error,
    }


class Inapplicable(Exception):
    """A group that is no permutation: its layers do not carry each unit the same number of times."""


def measure_torch_pruning(zoo: ModuleType, suite: str, name: str) -> Record:
    """Permute the groups of torch-pruning, one by one and all at once, and compare."""
    import torch_pruning as tp

    entry = zoo.get(suite, name)
    model = randomise(entry.builder()).double()
    (x,) = (value.double() for value in entry.example_inputs_fn())
    reference = outputs(model, (x,))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    classes = reference[0].shape[1]
    last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", None)) == classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
        groups = list(graph.get_all_groups(ignored_layers=last, root_module_types=(tp.ops.TORCH_CONV, nn.Linear)))
    orders, right, inapplicable = [], 0, 0
    for seed, group in enumerate(groups):
        torch.manual_seed(seed)
        try:
            orders.append(permute_group(graph, group))
            right += difference(reference, outputs(model, (x,))) <= ROUNDING
        except Inapplicable:
            inapplicable += 1
        model.load_state_dict(state)
    error = 0.0
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        for group in groups:
            try:
                permute_group(graph, group)
            except Inapplicable:
                continue
        error = max(error, difference(reference, outputs(model, (x,))))
        model.load_state_dict(state)
    return {
        "status": "ran",
        "groups": len(groups),
        "right": right,
        "inapplicable": inapplicable,
        "log10_order": sum(orders),
        "error": error,
    }


def channel_groups(graph: Any, group: Any) -> int:
    """Return into how many blocks of channels the layers of a group are cut, as torch-pruning's own pruners count."""
    found = [1]
    for dep, _ in group:
        module, pruner = dep.target.module, dep.handler.__self__
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels:
            continue  # depthwise
        out = graph.is_out_channel_pruning_fn(dep.handler)
        found.append(pruner.get_out_channel_groups(module) if out else pruner.get_in_channel_groups(module))
    return max(found)


def permute_group(graph: Any, group: Any) -> float:
    """Permute the channels of a group at random, in place; return the logarithm of how many permutations it has.

    Raises:
        Inapplicable: before anything is moved.
    """
    size = len(group[0].idxs)
    blocks = channel_groups(graph, group)
    if size % blocks:
        raise Inapplicable
    inner = torch.randperm(size // blocks)
    order = torch.cat([inner + block * len(inner) for block in range(blocks)]).tolist()
    moves: list[tuple[Tensor, int, Tensor]] = []
    for item in group:
        places: dict[int, list[int]] = defaultdict(list)
        for place, root in zip(item.idxs, item.root_idxs, strict=True):
            places[root].append(place)
        if len(places) != size or len({len(found) for found in places.values()}) != 1:
            if carried(graph, item.dep, torch.empty(0, dtype=torch.int64), dry=True):
                raise Inapplicable
            continue
        index = torch.arange(1 + max(item.idxs))
        for root, found in places.items():
            for place, source in zip(found, places[order[root]], strict=True):
                index[place] = source
        moves += carried(graph, item.dep, index)
    for tensor, axis, index in moves:
        if len(index) > tensor.shape[axis]:
            raise Inapplicable
    with torch.no_grad():
        for tensor, axis, index in moves:
            rest = torch.arange(len(index), tensor.shape[axis])
            tensor.copy_(tensor.index_select(axis, torch.cat([index, rest])))
    return log10_factorial(size // blocks)


def carried(graph: Any, dep: Any, index: Tensor, *, dry: bool = False) -> list[tuple[Tensor, int, Tensor]]:
    """Return the tensors that a pruning function of torch-pruning cuts, with the axis: here they are permuted."""
    module = dep.target.module
    out = graph.is_out_channel_pruning_fn(dep.handler)
    found: list[tuple[Any, int, Tensor]] = []
    if isinstance(module, nn.Parameter):
        found = [(module, dep.target.pruning_dim % module.ndim, index)]
    elif isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.out_channels and module.groups > 1
        if out or depthwise:
            found = [(module.weight, int(module.transposed), index), (module.bias, 0, index)]
        else:
            found = [(module.weight, int(not module.transposed), index[: len(index) // module.groups])]
    elif isinstance(module, nn.Linear):
        found = [(module.weight, 0, index), (module.bias, 0, index)] if out else [(module.weight, 1, index)]
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        tensors = (module.running_mean, module.running_var, module.weight, module.bias)
        found = [(tensor, 0, index) for tensor in tensors]
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.PReLU)):
        found = [(tensor, -1, index) for tensor in (module.weight, getattr(module, "bias", None))]
    elif isinstance(module, nn.Embedding):
        found = [(module.weight, 1, index)]
    elif isinstance(module, nn.MultiheadAttention):
        thrice = torch.cat([index + part * len(index) for part in range(3)])
        found = [
            (module.in_proj_weight, 0, thrice),
            (module.in_proj_weight, 1, index),
            (module.in_proj_bias, 0, thrice),
            (module.out_proj.weight, 0, index),
            (module.out_proj.weight, 1, index),
            (module.out_proj.bias, 0, index),
        ]
    return [(t, axis % t.ndim, i) for t, axis, i in found if isinstance(t, Tensor) and (dry or t.numel() > 1)]


def measure(tool: str, zoo: ModuleType, suite: str, name: str) -> Record:
    """Run a tool on a model; what it raises is a result."""
    torch.set_num_threads(1)
    how = {"rebasin": measure_rebasin, "torch-pruning": measure_torch_pruning}[tool]
    try:
        record = how(zoo, suite, name)
    except ImportError:
        raise
    except Exception as error:  # another tool's failure, of whatever kind
        record = {"status": "crash", "problem": describe(error)}
    return {**record, "version": version(tool)}
