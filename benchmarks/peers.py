"""Other pruners at the same budgets, for `accuracy.py --peers`; optional dependencies of that table, of nothing else.

    pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1

Torch-Pruning cuts a torch module; here it is the one the file was exported from (with its BatchNorm), or, for the nets
of models/, the same architecture with the file's weights and behind each Conv a BatchNorm that holds the calibration
images' statistics and undoes itself, which is what re-estimation needs. onnxsim cuts the file. Both take a share of
channels, so the share is searched that just meets the budget: the multiply-accumulates are counted in the file that
comes out, by the counter that counts ours. Both see the same calibration images; Taylor alone reads labels.

Re-estimated: running statistics of every BatchNorm averaged anew over the calibration images, after the cut.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import nn

from onnxshap.core import Array, Dataset
from onnxshap.graph import array
from onnxshap.opening import open_model

STEPS = 10
BATCH = 50
SLACK = 1.005
"""A peer's cut may keep this much more than the budget: its widths come in steps of its own."""


Row = tuple[str, str, str, str]
"""Whose cut it is, what ranks the channels, the widths (global: one threshold for all layers), and what follows."""
CRITERIA = (("l1", False), ("l2", False), ("taylor", False), ("random", False), ("l2", True), ("taylor", True))
WIDTHS = {False: "uniform", True: "global"}
RE_ESTIMATED = "BatchNorm"


# --- torch modules ---------------------------------------------------------------------------------------------------


def rebuilt(build: Callable[[], nn.Module], file: ModelProto, images: Array) -> nn.Module:
    """Return the module that a file of models/ was exported from, its BatchNorm made of calibration statistics.

    Raises:
        ValueError: the file is not that module's.
    """
    net = build().eval()
    stored = _layers_of(file)
    places = _in_order(net, torch.from_numpy(images[:2]))
    if len(stored) != len(places):
        raise ValueError(f"{len(stored)} layers in the file, {len(places)} in the module")
    shifts = {}
    with torch.no_grad():
        for item in file.graph.initializer:  # layer norms and positions keep their names, and layers get theirs below
            if item.name in dict(net.named_parameters()):
                net.get_parameter(item.name).copy_(torch.from_numpy(array(item).copy()))
        for (layer, norm), (weight, bias) in zip(places, stored, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.copy()).reshape(layer.weight.shape))
            if norm is None:
                layer.bias.copy_(torch.from_numpy(bias.copy()))
            else:
                shifts[norm] = torch.from_numpy(bias.copy())
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)
                norm.weight.fill_(1.0)
                norm.bias.copy_(shifts[norm])
        sums = {norm: [0.0, 0.0] for norm in shifts}
        with _hooks(shifts, lambda norm, x: _accumulate(sums[norm], x)):
            for start in range(0, len(images), BATCH):
                net(torch.from_numpy(images[start : start + BATCH]))
        for norm, (total, squares) in sums.items():
            mean = total / len(images)
            variance = squares / len(images) - mean**2
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
            norm.bias.copy_(shifts[norm] + norm.running_mean)
    return net


def _layers_of(file: ModelProto) -> list[tuple[Array, Array]]:
    """Return weight and bias of every layer, as a module has them, in order."""
    weights = {t.name: array(t) for t in file.graph.initializer}
    added = {n.input[0]: n.input[1] for n in file.graph.node if n.op_type == "Add" and n.input[1] in weights}
    found = []
    for node in file.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            found.append((weights[node.input[1]], weights[node.input[2]]))
        elif node.op_type == "MatMul" and node.input[1] in weights:
            found.append((weights[node.input[1]].T, weights[added[node.output[0]]]))
    return found


def _in_order(net: nn.Module, example: torch.Tensor) -> list[tuple[Any, Any]]:
    """Return every Conv and Linear as it is called, with the BatchNorm that follows it or None."""
    found: list[tuple[Any, Any]] = []

    def hook(module: nn.Module, _: Any, __: Any) -> None:
        if isinstance(module, nn.BatchNorm2d):
            found[-1] = (found[-1][0], module)
        else:
            found.append((module, None))

    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, _LAYERS)]
    with torch.no_grad():
        net(example)
    for handle in handles:
        handle.remove()
    return found


_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


@contextmanager
def _hooks(modules: Iterable[nn.Module], run: Callable[[nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Call `run` with a module and its input whenever one of them is called."""
    handles = [m.register_forward_pre_hook(lambda module, given: run(module, given[0])) for m in modules]
    yield
    for handle in handles:
        handle.remove()


def _accumulate(sums: list[Any], x: torch.Tensor) -> None:
    wide = x.double()
    sums[0] = sums[0] + wide.mean(dim=(2, 3)).sum(dim=0)
    sums[1] = sums[1] + (wide**2).mean(dim=(2, 3)).sum(dim=0)


def re_estimated(net: nn.Module, images: Array) -> nn.Module:
    """Return the module with the statistics of every BatchNorm averaged over the images."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
            module.train()
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            net(torch.from_numpy(images[start : start + BATCH]))
    return net.eval()


# --- Torch-Pruning ---------------------------------------------------------------------------------------------------


def torch_pruning(
    net: nn.Module, pool: Dataset, budgets: Sequence[float], seed: int
) -> Iterator[tuple[Row, float, ModelProto]]:
    """Yield, for every setting and budget, the cut model as a file.

    Args:
        net: the module, in evaluation mode.
        pool: calibration images with labels.
        budgets: shares of the multiply-accumulates.
        seed: of random choices.
    """
    import torch_pruning as tp

    (images,) = pool.inputs.values()
    example = torch.from_numpy(images[:2])
    gradients = _gradients(net, images, pool.labels)
    importances: dict[str, Callable[[], Any]] = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1),
        "l2": lambda: tp.importance.MagnitudeImportance(p=2),
        "taylor": tp.importance.TaylorImportance,
        "random": tp.importance.RandomImportance,
    }
    whole = _torch_macs(net, example)
    uniform = _Shares()  # widths that follow from the share alone
    for criterion, everywhere in CRITERIA:

        def cut(share: float, criterion: str = criterion, everywhere: bool = everywhere) -> nn.Module:
            torch.manual_seed(seed)
            found = copy.deepcopy(net)
            for p, gradient in zip(found.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            last = [m for m in found.modules() if isinstance(m, nn.Linear)][-1:]
            pruner = tp.pruner.BasePruner(
                found, example, importances[criterion](), global_pruning=everywhere, pruning_ratio=share,
                ignored_layers=last, num_heads=_heads(found),
            )  # fmt: skip
            pruner.step()
            return found

        for budget in budgets:
            shares = _Shares() if everywhere else uniform
            pruned = shares.cut(cut, lambda found: _torch_macs(found, example), budget * whole)
            if pruned is None:
                continue
            yield ("Torch-Pruning", criterion, WIDTHS[everywhere], "-"), budget, exported(pruned, example)
            after = re_estimated(pruned, images)
            yield ("Torch-Pruning", criterion, WIDTHS[everywhere], RE_ESTIMATED), budget, exported(after, example)


def _heads(net: nn.Module) -> dict[nn.Module, int]:
    """Return the heads of every Linear that makes queries, keys and values at once, which Torch-Pruning has to know."""
    return {m.qkv: m.heads for m in net.modules() if hasattr(m, "qkv") and hasattr(m, "heads")}


def _gradients(net: nn.Module, images: Array, labels: Array | None) -> list[torch.Tensor]:
    assert labels is not None
    net.zero_grad()
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        logits = net(torch.from_numpy(images[part]))
        nn.functional.cross_entropy(logits, torch.from_numpy(labels[part]), reduction="sum").backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.detach() / len(images) for p in net.parameters()]
    net.zero_grad()
    return found


def _torch_macs(net: nn.Module, example: torch.Tensor) -> int:
    """Return the multiply-accumulates of an image: of all Conv and Linear; where there is attention, the file's."""
    if _heads(net):
        return macs(exported(net, example))
    total = 0

    def hook(module: Any, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * (y[0, 0].numel() if y.ndim == 4 else 1)

    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net(example)
    for handle in handles:
        handle.remove()
    return total


def exported(net: nn.Module, example: torch.Tensor) -> ModelProto:
    """Return the module as a file's content."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (example,), buffer, dynamo=False, opset_version=17, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


# --- onnxsim ---------------------------------------------------------------------------------------------------------


def onnxsim(file: ModelProto, pool: Dataset, budgets: Sequence[float]) -> Iterator[tuple[Row, float, ModelProto]]:
    """Yield, for every setting and budget, the cut model."""
    import onnxsim as peer

    feeds = [dict(pool.take(slice(s, s + BATCH)).inputs) for s in range(0, len(pool), BATCH)]
    whole = macs(file)
    uniform = _Shares()
    for criterion, everywhere in (("l2", False), ("wanda", False), ("l2", True)):

        def cut(share: float, criterion: str = criterion, everywhere: bool = everywhere) -> ModelProto:
            given = copy.deepcopy(file)
            if criterion == "wanda":
                return peer.apply_structured_wanda_pruning(  # type: ignore[no-any-return]
                    given, calibration_data=feeds, sparsity=share, global_sparsity=everywhere
                )
            return peer.apply_structured_pruning(  # type: ignore[no-any-return]
                given, sparsity=share, global_sparsity=everywhere
            )

        for budget in budgets:
            pruned = (_Shares() if everywhere else uniform).cut(cut, macs, budget * whole)
            if pruned is None:
                continue  # it cannot cut so much
            yield ("onnxsim", criterion, WIDTHS[everywhere], "-"), budget, pruned
            if not everywhere:
                tuned = peer.apply_pruning_finetune(copy.deepcopy(file), copy.deepcopy(pruned), calibration_data=feeds)
                yield ("onnxsim", criterion, WIDTHS[everywhere], "finetune"), budget, tuned


# --- budgets ---------------------------------------------------------------------------------------------------------


def macs(file: ModelProto) -> int:
    """Return the multiply-accumulates of a file, by the counter of the cut."""
    traced, _ = open_model(file, None)
    return traced.cost.macs()


class _Shares:
    """The share of channels that has to go, by target; found once for all criteria that give the same widths."""

    def __init__(self) -> None:
        self._found: dict[float, float | None] = {}

    def cut(self, cut: Callable[[float], Any], cost: Callable[[Any], int], target: float) -> Any:
        """Return the largest cut model that meets the target, by bisection of the share; None where there is none."""
        if target not in self._found:
            low, high, best, most = 0.0, 1.0, None, -1
            for _ in range(STEPS):
                share = (low + high) / 2
                spent = cost(cut(share))
                if spent <= SLACK * target:
                    high = share
                    if spent > most:
                        best, most = share, spent
                else:
                    low = share
            self._found[target] = best
        best = self._found[target]
        found = None if best is None else cut(best)
        if found is not None and cost(found) > SLACK * target:  # not the same widths after all
            return _Shares().cut(cut, cost, target)
        return found
