"""``torch.export`` to a graph. The only file that knows it.

``export(...).run_decompositions({})`` gives the level that rules want: structured operations stay whole (``linear``,
``conv2d``, ``layer_norm``, ``scaled_dot_product_attention``, ``lstm``), and writes in place become functional ones
(``slice_scatter``, ``copy``). A rule that ignored a write through a view would be unsound.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..graph import Call, Graph, Value, Where
from .boundary import finish, model_values
from .messages import quiet

_FOLD_LIMIT = 1 << 22
"""Constants of more elements than this are not evaluated; their axes are pinned."""

_NOISE = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "_set_grad_enabled")
_WRITTEN_BACK = ("BUFFER_MUTATION", "PARAMETER_MUTATION")
_SOURCE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]*)')


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Export a model to functional operations. Whatever its forward or the exporter may raise comes through."""
    with torch.no_grad(), quiet():
        exported: ExportedProgram = torch.export.export(model, args, kwargs, strict=False)
        functional: ExportedProgram = exported.run_decompositions({})
        return functional


def read(exported: ExportedProgram, model: nn.Module) -> Graph:
    """Read an exported program as a graph.

    Raises:
        GuardOnDataDependentSymNode: if there are sizes that only data decides.
    """
    values = model_values(model)
    nodes: dict[str, Any] = {}
    inputs: list[Value] = []
    constants = {**exported.constants, **exported.state_dict}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    calls: list[Call] = []
    outputs: list[Value] = []
    written: list[tuple[Value, Value]] = []
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.target is not None and spec.target in values:
                nodes[node.name] = values[spec.target]
            elif spec.kind == InputKind.USER_INPUT:
                nodes[node.name] = _value(node, "input")
                if isinstance(nodes[node.name], Value):
                    inputs.append(nodes[node.name])
            else:
                nodes[node.name] = _value(node, "constant")
                data = constants.get(spec.target or "")
                if isinstance(data, Tensor) and isinstance(nodes[node.name], Value):
                    nodes[node.name].data = data.detach()
        elif node.op == "output":
            for spec, argument in zip(exported.graph_signature.output_specs, node.args[0], strict=True):
                value = _resolve(argument, nodes)
                own = values.get(spec.target or "") if spec.kind.name in _WRITTEN_BACK else None
                if isinstance(value, Value) and own is not None and own.kind != "constant":
                    written.append((value, own))
                elif isinstance(value, Value) and spec.kind != OutputKind.LOSS_OUTPUT:
                    outputs.append(value)
        elif node.op == "get_attr":
            nodes[node.name] = getattr(exported.graph_module, node.target, None)
        elif node.target is operator.getitem and isinstance(nodes.get(node.args[0].name), tuple):
            nodes[node.name] = nodes[node.args[0].name][node.args[1]]
        elif not any(word in str(node.target) for word in _NOISE):
            call, result = _call(node, nodes)
            nodes[node.name] = result
            if call is not None:
                calls.append(call)
    return finish(model, values, calls, inputs, outputs, written=written)


def _value(node: torch.fx.Node, kind: str) -> Any:
    meta = node.meta.get("val")
    if isinstance(meta, Tensor):
        return Value(node.name, tuple(int(n) for n in meta.shape), kind)
    return meta


def _resolve(argument: Any, nodes: Mapping[str, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return nodes[argument.name]
    if isinstance(argument, (list, tuple)):
        return [_resolve(item, nodes) for item in argument]
    return argument


def _call(node: torch.fx.Node, nodes: Mapping[str, Any]) -> tuple[Call | None, Any]:
    """Return the call for a node (None if it was folded) and what the node stands for."""
    op: Any = node.target
    args = tuple(_resolve(argument, nodes) for argument in node.args)
    kwargs = {key: _resolve(argument, nodes) for key, argument in node.kwargs.items()}
    meta = node.meta.get("val")
    many = isinstance(meta, (list, tuple))
    results = tuple(
        Value(f"{node.name}.{i}" if many else node.name, tuple(int(n) for n in item.shape))
        if isinstance(item, Tensor)
        else None
        for i, item in enumerate(meta if isinstance(meta, (list, tuple)) else [meta])
    )
    call = Call(op, args, kwargs, results, _where(node))
    fed = any(operand.fed for operand in call.operands())
    for result in results:
        if result is not None:
            result.fed = fed
    if all(operand.kind == "constant" for operand in call.operands()) and _fold(call):
        return None, results if many else results[0]
    return call, (results if many else results[0] if results[0] is not None else meta)


def _fold(call: Call) -> bool:
    """Compute a call that no parameter and no input feeds; tell whether that was possible."""
    op = call.op
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in op.tags:
        return False
    size = sum(torch.Size(result.shape).numel() for result in call.results if result is not None)
    if size > _FOLD_LIMIT or any(operand.data is None for operand in call.operands()):
        return False
    try:
        with torch.no_grad():
            made = op(*_data(call.args), **_data(call.kwargs))
    except Exception:  # whatever goes wrong in computing a constant early, the call itself stays in the graph
        return False
    for result, data in zip(call.results, made if isinstance(made, (list, tuple)) else [made], strict=True):
        if result is not None:
            result.kind, result.data = "constant", data
    return True


def _data(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.data
    if isinstance(argument, dict):
        return {key: _data(item) for key, item in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_data(item) for item in argument)
    return argument


def _where(node: torch.fx.Node) -> Where:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(list(stack.values()))), "")
    found = [match for match in _SOURCE.finditer(node.meta.get("stack_trace") or "")]
    theirs = [match for match in found if "/torch/" not in match["file"]]
    source = f"{theirs[-1]['file']}:{theirs[-1]['line']}: {theirs[-1]['code']}" if theirs else ""
    return Where(path.removeprefix("L['self'].").removeprefix("L['self']"), source)
