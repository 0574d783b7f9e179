"""Train the example networks on Fashion-MNIST and export them, with slices of the data, for tests and benchmarks.

python models/train.py [vgg|resdw|resnet20|vit|all|data] [--data DIR] [--out DIR] [--seed N] [--epochs N] [--threads N]

`vgg`, `resnet20` and `vit` go through torch's dynamo exporter and `resdw` through the legacy one, so that the files
show the habits of both. Runs repeat for the same seed, thread count and torch release. The last epoch's weights are
exported: the test set is looked at once, on the finished file.
"""

import gzip
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Images = NDArray[np.uint8]  # uint8[n, 28, 28], 0 is the background
Labels = NDArray[np.int64]  # int64[n], 0 to 9

CLASSES = 10
MEAN, STD = 0.286, 0.353  # of the training set's pixels, divided by 255
SHIFT = 2  # pixels an augmented image may move either way


class Normalize(nn.Module):
    """Pixels in 0..1 to about zero mean and unit variance; part of the exported graph, so users feed plain images."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the image, centred and scaled."""
        return (image - MEAN) / STD


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a Conv without bias that keeps the image's size (up to its stride), and its BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


def vgg() -> nn.Module:
    """Return a plain chain of Conv-BatchNorm-ReLU and two Gemm behind a Flatten; no two layers share their channels."""
    return nn.Sequential(
        Normalize(),
        *conv_bn(1, 16),
        nn.ReLU(),
        *conv_bn(16, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *conv_bn(16, 32),
        nn.ReLU(),
        *conv_bn(32, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *conv_bn(32, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


class BasicBlock(nn.Module):
    """The ResNet block: two 3x3 Conv, and a 1x1 Conv on the shortcut where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(c_in, c_out, 3, stride), nn.ReLU(), *conv_bn(c_out, c_out))
        same_shape = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Sequential(*conv_bn(c_in, c_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """The MobileNetV2 block: 1x1 Conv up, depthwise 3x3, 1x1 down without activation; a sum where shapes allow it."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        self.body = nn.Sequential(
            *conv_bn(c_in, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, c_out, 1),
        )
        self.residual = c_in == c_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return body(x), plus x in a residual block."""
        return x + self.body(x) if self.residual else self.body(x)


def resdw() -> nn.Module:
    """Return a net of residual and depthwise-separable blocks behind one stem; global pooling and a Gemm last."""
    return nn.Sequential(
        Normalize(),
        *conv_bn(1, 16),
        nn.ReLU(),
        BasicBlock(16, 24, stride=2),
        InvertedResidual(24, 24, stride=1, expand=3),
        InvertedResidual(24, 32, stride=2, expand=4),
        InvertedResidual(32, 32, stride=1, expand=4),
        InvertedResidual(32, 32, stride=1, expand=4),
        *conv_bn(32, 96, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


def resnet20() -> nn.Module:
    """Return the ResNet-20 of He et al. 2016 (CIFAR's; projections on the shortcuts), on 28 x 28 pixels."""
    widths = [(16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)]
    blocks, c_in = [], 16
    for c_out, stride in widths:
        blocks.append(BasicBlock(c_in, c_out, stride))
        c_in = c_out
    return nn.Sequential(
        Normalize(), *conv_bn(1, 16), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)
    )


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come out of one Linear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what tokens [n, tokens, width] gather from each other."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(seen.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """The pre-norm transformer block of ViT: attention, then two Linear with GELU between, each with a residual sum."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.think = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [n, tokens, width] after both."""
        x = x + self.attend(x)
        return x + self.think(x)


class Tokens(nn.Module):
    """Pixels of a feature map in a row, their learned positions added."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, width, h, w] as [n, h * w, width]."""
        return x.flatten(2).transpose(1, 2) + self.positions


class MeanToken(nn.Module):
    """Mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, width] of [n, tokens, width]."""
        return x.mean(1)


def vit() -> nn.Module:
    """Return a small vision transformer (Dosovitskiy 2021) behind two strided Conv (Xiao 2021): 49 tokens, 64 wide."""
    width = 64
    return nn.Sequential(
        Normalize(),
        *conv_bn(1, 32, 3, 2),
        nn.ReLU(),
        *conv_bn(32, width, 3, 2),
        Tokens(width, 7 * 7),
        *(EncoderBlock(width, heads=4, hidden=2 * width) for _ in range(4)),
        nn.LayerNorm(width),
        MeanToken(),
        nn.Linear(width, CLASSES),
    )


def export_dynamo(net: nn.Module, path: Path) -> None:
    """Write `net` with torch's dynamo exporter, opset 18."""
    image = torch.zeros(2, 1, 28, 28)
    batch = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["image"], "output_names": ["logits"], "verbose": False}
    torch.onnx.export(
        net, (image,), path, dynamo=True, external_data=False, opset_version=18, dynamic_shapes=batch, **names
    )


def export_legacy(net: nn.Module, path: Path) -> None:
    """Write `net` with torch's TorchScript exporter, opset 17."""
    image = torch.zeros(2, 1, 28, 28)
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(net, (image,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


@dataclass(frozen=True)
class Recipe:
    """How one network is made."""

    build: Callable[[], nn.Module]
    export: Callable[[nn.Module, Path], None]
    epochs: int
    max_lr: float
    batch: int = 128
    weight_decay: float = 0.01

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return a one-cycle schedule: a short warm-up, then a cosine down to nothing."""
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.max_lr, total_steps=steps, pct_start=0.2)


RECIPES = {
    "vgg": Recipe(vgg, export_dynamo, epochs=24, max_lr=0.008),
    "resdw": Recipe(resdw, export_legacy, epochs=14, max_lr=0.008),
    "resnet20": Recipe(resnet20, export_dynamo, epochs=6, max_lr=0.008),
    "vit": Recipe(vit, export_dynamo, epochs=12, max_lr=0.002, weight_decay=0.05),
}


def read_idx(path: Path) -> Images:
    """Return the uint8 array of a gzipped IDX file (magic 00 00 08 rank, big-endian sizes, then the data)."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise click.ClickException(f"{path}: not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Images, Labels]:
    """Return images and labels of the split `train` or `t10k`."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)
    return images, labels


def to_input(images: Images) -> NDArray[np.float32]:
    """Return images as the networks take them: float32[n, 1, 28, 28] in 0..1."""
    return images[:, None].astype(np.float32) / np.float32(255)


def balanced(labels: Labels, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return n shuffled indices into `labels`, as many of each class."""
    chosen = [rng.choice(np.flatnonzero(labels == c), n // CLASSES, replace=False) for c in range(CLASSES)]
    return rng.permutation(np.concatenate(chosen))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path` and then put it in place, so that readers never see half of it."""
    part = path.with_name(f".part-{path.name}")
    write(part)
    part.replace(path)


def write_slices(train: tuple[Images, Labels], test: tuple[Images, Labels], out: Path, seed: int) -> None:
    """Write the calibration images (of the training set) and the test images as .npz with `image` and `labels`."""
    rng = np.random.default_rng(seed)
    for name, (images, labels), n in (("calibration", train, 1000), ("test", test, 2000)):
        index = balanced(labels, n, rng)
        save = partial(np.savez_compressed, image=to_input(images[index]), labels=labels[index])
        write_whole(out / f"fashion_{name}.npz", save)
        click.echo(f"fashion_{name}.npz: {n} images")


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return every image of a float32[n, 1, h, w] batch, mirrored or not and shifted by up to SHIFT pixels."""
    n, _, height, width = image.shape
    padded = nn.functional.pad(image, (SHIFT, SHIFT, SHIFT, SHIFT))[:, 0]
    dy, dx = torch.randint(0, 2 * SHIFT + 1, (2, n), generator=generator)
    rows = (dy[:, None] + torch.arange(height))[:, :, None]
    cols = dx[:, None] + torch.arange(width)
    flip = torch.rand(n, generator=generator) < 0.5
    cols = torch.where(flip[:, None], cols.flip(1), cols)[:, None, :]
    return padded[torch.arange(n)[:, None, None], rows, cols][:, None]


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of augmented batches in a fresh order; the incomplete last batch is left out."""
    order = torch.randperm(len(labels), generator=generator)
    for start in range(0, len(order) - size + 1, size):
        index = order[start : start + size]
        yield augment(images[index], generator), labels[index]


def fit(recipe: Recipe, images: Images, labels: Labels, seed: int) -> nn.Module:
    """Return a freshly initialised net trained on the images, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = recipe.build().train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    x, y = torch.from_numpy(to_input(images)), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.max_lr, weight_decay=recipe.weight_decay)
    schedule = recipe.schedule(optimizer, recipe.epochs * (len(y) // recipe.batch))
    for epoch in range(recipe.epochs):
        began, total, right, seen = time.perf_counter(), 0.0, 0, 0
        for image, label in batches(x, y, recipe.batch, generator):
            logits = net(image)
            loss = nn.functional.cross_entropy(logits, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(label)
            right += int((logits.argmax(1) == label).sum())
            seen += len(label)
        seconds = time.perf_counter() - began
        click.echo(
            f"  epoch {epoch + 1:2}: loss {total / seen:.4f}, training accuracy {right / seen:.2%}, {seconds:.0f} s"
        )
    return net.eval().to(memory_format=torch.contiguous_format)


def drop_stack_traces(path: Path) -> None:
    """Remove the source paths that the dynamo exporter leaves on every node; its other metadata stays."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [prop for prop in node.metadata_props if not prop.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def count(model: onnx.ModelProto) -> tuple[int, int]:
    """Return the parameters of all Conv, Gemm and MatMul, and their MACs for one image (a bias costs none).

    MatMul of two activations (attention) has no parameters, and its MACs are not counted.
    """
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {w.name: math.prod(w.dims) for w in graph.initializer}
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.output)}
    params = macs = 0
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in sizes:
            dims = [dim.dim_value for dim in shapes[node.output[0]]]
            places = math.prod(dims[2:] if node.op_type == "Conv" else dims[1:-1])
            macs += places * sizes[node.input[1]]
            params += sum(sizes[name] for name in node.input[1:])
    return params, macs


def accuracy(session: ort.InferenceSession, images: NDArray[np.float32], labels: Labels) -> float:
    """Return the share of images whose largest logit is their label."""
    starts = range(0, len(labels), 500)
    logits = np.concatenate([session.run(["logits"], {"image": images[i : i + 500]})[0] for i in starts])
    return float((logits.argmax(1) == labels).mean())


def describe(path: Path, test: tuple[Images, Labels], slice_path: Path) -> str:
    """Return the file's size, cost and accuracy as a row of the README's table."""
    params, macs = count(onnx.load(path))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    whole = accuracy(session, to_input(test[0]), test[1])
    with np.load(slice_path) as part:
        sliced = accuracy(session, part["image"], part["labels"])
    size = path.stat().st_size
    return f"| `{path.name}` | {params:,} | {macs:,} | {whole:.2%} | {sliced:.2%} | {size / 1000:.0f} kB |"


@click.command()
@click.argument("what", type=click.Choice([*RECIPES, "all", "data"]), default="all")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="/usr/share/datasets/fashion-mnist",
    show_default=True,
    help="Folder of the four *-ubyte.gz files (Debian: dataset-fashion-mnist).",
)
@click.option(
    "--out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Where the files go.  [default: beside this script]",
)
@click.option("--seed", default=0, show_default=True, help="Of the slices, initial weights, order and augmentation.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's, for a quick try.")
@click.option("--threads", default=2, show_default=True, help="For torch; the trained weights depend on it.")
def main(what: str, data: Path, out: Path, seed: int, epochs: int | None, threads: int) -> None:
    """Train and export the networks named by WHAT and write the data slices."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    train, test = read_split(data, "train"), read_split(data, "t10k")
    write_slices(train, test, out, seed)
    for name in RECIPES if what == "all" else [what] * (what in RECIPES):
        recipe = RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)
        click.echo(f"{name}: {recipe.epochs} epochs")
        net = fit(recipe, *train, seed)
        path = out / f"fashion_{name}.onnx"

        def export(part: Path, recipe: Recipe = recipe, net: nn.Module = net) -> None:
            recipe.export(net, part)
            drop_stack_traces(part)

        write_whole(path, export)
        click.echo(describe(path, test, out / "fashion_test.npz"))


if __name__ == "__main__":
    main()
