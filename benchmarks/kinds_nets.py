"""Small nets of many kinds, trained in a minute each on what the package holds or what can be made up.

Images are the 1000 of `models/fashion_calibration.npz` (shifted, flipped) to train on, and the 2000 of
`models/fashion_test.npz` to test with; scenes put one or two of them on a cluttered ground. Signals are waves with an
envelope, tables are drawn from a formula, and text is Python's own standard library, by characters.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[Any]
Part = tuple[dict[str, Array], Array]
"""Inputs by name, and targets."""
FOLDER = Path(__file__).parent.parent / "models"
TRAIN, CALIBRATE, TEST = 12_000, 1000, 1500
BATCH, RATE = 32, 3e-3
CHARACTERS = 96
STEPS = 48


# --- data: a function of (how many, which part, rng) ------------------------------------------------------------------


def pictures(count: int, part: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return Fashion-MNIST images [n, 1, 28, 28], those of training shifted and flipped, and their classes."""
    with np.load(FOLDER / f"fashion_{'test' if part == 'test' else 'calibration'}.npz") as file:
        images, labels = file["image"], file["labels"]
    if part != "train":
        return images[:count], labels[:count]
    chosen = rng.integers(0, len(images), count)
    found = images[chosen]
    for k, (down, right, flip) in enumerate(
        zip(*rng.integers(-3, 4, (2, count)), rng.random(count) < 0.5, strict=True)
    ):
        found[k, 0] = np.roll(found[k, 0, :, ::-1] if flip else found[k, 0], (down, right), (0, 1))
    return found, labels[chosen]


def classes(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return images and their classes."""
    images, labels = pictures(count, part, rng)
    return {"image": images}, labels


def itself(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return images, and the same as targets."""
    images, _ = pictures(count, part, rng)
    return {"image": images}, images


def halved(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return images of half of the size, and the whole ones."""
    images, _ = pictures(count, part, rng)
    return {"image": images.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)).astype(np.float32)}, images


def _scene(images: Array, rng: np.random.Generator, most: int) -> tuple[Array, list[tuple[int, Array, int, int]]]:
    """Return a cluttered picture [32, 32] and what was put there: number, mask, top, left."""
    ground = rng.uniform(0, 0.3) + rng.normal(0, 0.05, (32, 32))
    for top, left, height, width in zip(*rng.integers(0, 26, (2, 3)), *rng.integers(2, 9, (2, 3)), strict=True):
        ground[top : top + height, left : left + width] = rng.uniform(0, 0.7)
    put = []
    for _ in range(rng.integers(1, most + 1)):
        number, size = int(rng.integers(len(images))), int(rng.integers(14, 24))
        near = np.linspace(0, 27, size).round().astype(int)
        item, (top, left) = images[number, 0][np.ix_(near, near)], rng.integers(0, 33 - size, 2)
        place = ground[top : top + size, left : left + size]
        place[...] = np.where(item > 0.08, item, place)
        put.append((number, item > 0.08, int(top), int(left)))
    return ground.clip(0, 1), put


GROUPS = np.array([0, 1, 2, 0, 2, 3, 0, 3, 4, 3])
"""Tops, trousers, dresses and coats, shoes, bags."""


def regions(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return scenes [n, 1, 32, 32] and the class of every pixel, 0 for the ground."""
    images, labels = pictures(CALIBRATE if part == "train" else TEST, "test" if part == "test" else "calibrate", rng)
    found, targets = np.zeros((count, 1, 32, 32), np.float32), np.zeros((count, 32, 32), np.int64)
    for k in range(count):
        found[k, 0], put = _scene(images, rng, 2)
        for number, mask, top, left in put:
            own = targets[k, top : top + len(mask), left : left + len(mask)]
            own[mask] = 1 + GROUPS[labels[number]]
    return {"image": found}, targets


def corners(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return scenes of one item, and heat maps [n, 4, 16, 16] of the corners of its box."""
    images, _ = pictures(CALIBRATE if part == "train" else TEST, "test" if part == "test" else "calibrate", rng)
    found, targets = np.zeros((count, 1, 32, 32), np.float32), np.zeros((count, 4, 16, 16), np.float32)
    down, right = np.mgrid[:16, :16]
    for k in range(count):
        found[k, 0], [(_, mask, top, left)] = _scene(images, rng, 1)
        rows, columns = np.nonzero(mask)
        if len(rows):
            for j, (pick, other) in enumerate(((np.min, np.min), (np.min, np.max), (np.max, np.min), (np.max, np.max))):
                y, x = (top + pick(rows)) / 2, (left + other(columns)) / 2
                targets[k, j] = np.exp(-((down - y) ** 2 + (right - x) ** 2) / 3)
    return {"image": found}, targets


def signals(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return noisy waves [n, 2, 128] of four shapes and three envelopes."""
    labels, t = rng.integers(0, 12, count), np.arange(128) / 128
    found = np.zeros((count, 2, 128), np.float32)
    for k, label in enumerate(labels):
        w = 2 * np.pi * rng.uniform(3, 9) * t + rng.uniform(0, 2 * np.pi)
        wave = [np.sin(w), np.sign(np.sin(w)), 2 * ((w / 2 / np.pi) % 1) - 1, np.sin(w * (1 + 0.7 * t))][label % 4]
        wave = wave * [1, np.exp(-3 * t), np.abs(np.sin(3 * np.pi * t))][label // 4]
        found[k, 0] = wave * rng.uniform(0.6, 1.4) + rng.normal(0, 0.25, 128)
        found[k, 1] = np.roll(wave, rng.integers(0, 8)) * rng.uniform(0.3, 1) + rng.normal(0, 0.35, 128)
    return {"signal": found}, labels


def text(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return pieces of source text [n, 48], and the characters that follow each."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[part == "test" :: 2][:60]
    codes = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8).astype(np.int64)
    codes = np.where((codes >= 32) & (codes < 127), codes - 31, 0)
    pieces = codes[rng.integers(0, len(codes) - STEPS - 1, count)[:, None] + np.arange(STEPS + 1)]
    return {"ids": pieces[:, :-1]}, pieces[:, 1:]


def friedman(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return ten numbers, and a formula's value of seven of them (Friedman 1991, one term more)."""
    x = rng.uniform(0, 1, (count, 10)).astype(np.float32)
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return {"x": x}, (y + 3 * np.sin(6 * x[:, 5] * x[:, 6]))[:, None].astype(np.float32)


def table(count: int, part: str, rng: np.random.Generator) -> Part:
    """Return four categories and eight numbers, and one of five classes by a formula."""
    fixed = np.random.default_rng(7)
    meanings = fixed.normal(size=(4, 12, 3))
    kinds, numbers = rng.integers(0, 12, (count, 4)), rng.normal(size=(count, 8)).astype(np.float32)
    z = np.concatenate([numbers, *(meanings[k, kinds[:, k]] for k in range(4))], axis=1) @ fixed.normal(size=(20, 40))
    scores = np.sin(z / 4) @ fixed.normal(size=(40, 5)) + np.maximum(z / 4, 0) @ fixed.normal(size=(40, 5)) / 2
    return {"kinds": kinds, "numbers": numbers}, scores.argmax(axis=1)


# --- nets -------------------------------------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a Conv, its BatchNorm and a ReLU."""
    made = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [made, nn.BatchNorm2d(c_out), nn.ReLU()]


class Sum(nn.Module):
    """A body and what goes around it."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Return both together."""
        return x + self.body(x)


class Joined(nn.Module):
    """What several branches give, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return all channels."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels, each by its factor."""
        return x * self.gate(x)


def head(channels: int) -> list[nn.Module]:
    """Return a mean over space and ten class scores."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def mobilenet() -> nn.Module:
    """Return inverted bottlenecks with squeeze-excite and hard-swish, as in MobileNetV3."""

    def block(c_in: int, inner: int, c_out: int, stride: int, *more: nn.Module) -> nn.Module:
        narrow = [nn.Conv2d(inner, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        body = [*conv(c_in, inner, 1), *conv(inner, inner, 3, stride, inner), *more, *narrow]
        return Sum(*body) if c_in == c_out and stride == 1 else nn.Sequential(*body)

    return nn.Sequential(
        *conv(1, 16, stride=2), block(16, 32, 16, 1, Excite(32)), block(16, 48, 24, 2), block(24, 72, 24, 1),
        block(24, 72, 32, 2, Excite(72)), block(32, 96, 32, 1, Excite(96)), *conv(32, 96, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64), nn.Hardswish(), nn.Linear(64, 10),
    )  # fmt: skip


def densenet() -> nn.Module:
    """Return two stages in which every layer reads all before it."""

    def layer(channels: int) -> nn.Module:
        body = [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *conv(channels, 24, 1),
            nn.Conv2d(24, 12, 3, padding=1, bias=False),
        ]
        return Joined(nn.Identity(), nn.Sequential(*body))

    return nn.Sequential(
        *conv(1, 16, stride=2), *(layer(c) for c in (16, 28, 40, 52)), *conv(64, 32, 1), nn.AvgPool2d(2),
        *(layer(c) for c in (32, 44, 56, 68)), nn.BatchNorm2d(80), nn.ReLU(), *head(80),
    )  # fmt: skip


def grouped() -> nn.Module:
    """Return bottlenecks whose inner Convs are in groups, as in ResNeXt."""

    def block(channels: int, inner: int) -> list[nn.Module]:
        last = [nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        return [Sum(*conv(channels, inner, 1), *conv(inner, inner, groups=8), *last), nn.ReLU()]

    return nn.Sequential(
        *conv(1, 48, stride=2), *block(48, 32), *block(48, 32), *conv(48, 80, stride=2), *block(80, 64), *block(80, 64),
        *head(80),
    )  # fmt: skip


class Mixer(nn.Module):
    """Tokens and channels mixed in turn, as in MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 48, 4, 4)
        self.tokens = nn.ModuleList(self._mlp(49, 64) for _ in range(3))
        self.channels = nn.ModuleList(self._mlp(48, 96) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(7))
        self.head = nn.Linear(48, 10)

    def _mlp(self, width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        for k, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * k](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * k + 1](x))
        return self.head(self.norms[-1](x).mean(1))


class UNet(nn.Module):
    """Two steps down, two up, each beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 12, 24, 48)
        self.down = nn.ModuleList(nn.Sequential(*conv(a, b), *conv(b, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths[1:]))
        self.joined = nn.ModuleList(nn.Sequential(*conv(2 * a, a), *conv(a, a)) for a in widths[1:3])
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores of every pixel."""
        a = self.down[0](image)
        b = self.down[1](functional.max_pool2d(a, 2))
        x = self.down[2](functional.max_pool2d(b, 2))
        x = self.joined[1](torch.cat([self.up[1](x), b], 1))
        return self.head(self.joined[0](torch.cat([self.up[0](x), a], 1)))


def keypoints() -> nn.Module:
    """Return heat maps by Convs, an upsampling and a transposed Conv."""
    inner = Sum(*conv(32, 48), nn.Conv2d(48, 32, 3, padding=1))
    return nn.Sequential(
        *conv(1, 16, stride=2), *conv(16, 32), *conv(32, 32, stride=2), inner, nn.ReLU(), *conv(32, 48, stride=2),
        *conv(48, 48), nn.Upsample(scale_factor=2, mode="bilinear"), *conv(48, 32),
        nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 4, 1), nn.Sigmoid(),
    )  # fmt: skip


def larger() -> nn.Module:
    """Return residual blocks without norms, and a PixelShuffle."""
    blocks = [Sum(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)) for _ in range(4)]
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), Sum(*blocks), nn.Conv2d(24, 48, 3, padding=1), nn.PixelShuffle(2),
        nn.Conv2d(12, 1, 3, padding=1),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    """Return 24 numbers an image, and the image again."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 24), nn.Linear(24, 128), nn.ReLU(), nn.Linear(128, 1568),
        nn.ReLU(), nn.Unflatten(1, (32, 7, 7)), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


def along_time() -> nn.Module:
    """Return Convs along time."""

    def layer(c_in: int, c_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv1d(c_in, c_out, kernel, stride, kernel // 2), nn.BatchNorm1d(c_out), nn.ReLU()]

    return nn.Sequential(
        *layer(2, 16, 9, 2), *layer(16, 32, 5), nn.MaxPool1d(2), *layer(32, 48, 5), *layer(48, 64, 3, 2),
        *layer(64, 64, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 12),
    )  # fmt: skip


class Recurrent(nn.Module):
    """Two recurrent layers over 32 steps of eight numbers, and a hidden layer on their mean."""

    def __init__(self, kind: Callable[..., nn.Module], *, bidirectional: bool = False) -> None:
        super().__init__()
        self.layers = kind(8, 48, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Sequential(nn.Linear(48 * (1 + bidirectional), 48), nn.ReLU(), nn.Linear(48, 12))

    def forward(self, signal: Tensor) -> Tensor:
        """Return class scores."""
        steps = signal.reshape(-1, 2, 32, 4).permute(0, 2, 1, 3).reshape(-1, 32, 8)
        return self.head(self.layers(steps)[0].mean(1))


class Attend(nn.Module):
    """Causal attention of four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("later", torch.full((STEPS, STEPS), -1e4).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return what every place reads of those before it."""
        n, steps, width = x.shape
        q, k, v = self.read(x).view(n, steps, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // 4) + self.later).softmax(-1)
        return self.write((weights @ v).transpose(1, 2).reshape(n, steps, width))


class Language(nn.Module):
    """A decoder of three layers, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, 64), nn.Parameter(0.02 * torch.randn(STEPS, 64))
        mlps = [[nn.LayerNorm(64), nn.Linear(64, 160), nn.GELU(), nn.Linear(160, 64)] for _ in range(3)]
        layers = [layer for mlp in mlps for layer in (Sum(nn.LayerNorm(64), Attend(64)), Sum(*mlp))]
        self.body = nn.Sequential(*layers, nn.LayerNorm(64), nn.Linear(64, CHARACTERS, bias=False))

    def forward(self, ids: Tensor) -> Tensor:
        """Return scores of the next character, at every place."""
        return self.body(self.characters(ids) + self.places)


def numbers() -> nn.Module:
    """Return three hidden layers."""
    widths = (10, 64, 64, 32)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 1))


class Tabular(nn.Module):
    """Embedded categories beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(12, 6) for _ in range(4))
        hidden = [layer for a, b in ((32, 96), (96, 96)) for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
        self.body = nn.Sequential(*hidden, nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 5))

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        """Return class scores."""
        return self.body(torch.cat([*(t(kinds[:, k]) for k, t in enumerate(self.tables)), numbers], 1))


# --- training ---------------------------------------------------------------------------------------------------------


def of_classes(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy; the class axis is the last of what says something of every step."""
    return functional.cross_entropy(output.transpose(1, 2) if output.ndim == 3 else output, target)


@dataclass(frozen=True)
class Kind:
    """A kind of net.

    Attributes:
        build: makes it.
        data: gives inputs and targets.
        loss: of training.
        steps: of training.
        legacy: which of torch's exporters writes it.
    """

    build: Callable[[], nn.Module]
    data: Callable[[int, str, np.random.Generator], Part]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    legacy: bool = False


KINDS: Mapping[str, Kind] = {
    "numbers, one target": Kind(numbers, friedman, functional.mse_loss, 3000),
    "embedded categories": Kind(Tabular, table, of_classes, 3000),
    "Conv along time": Kind(along_time, signals, of_classes, 800),
    "GRU, two layers": Kind(lambda: Recurrent(nn.GRU), signals, of_classes, 1500, legacy=True),
    "LSTM, both ways": Kind(lambda: Recurrent(nn.LSTM, bidirectional=True), signals, of_classes, 1500, legacy=True),
    "autoencoder": Kind(autoencoder, itself, functional.mse_loss, 1000),
    "superresolution": Kind(larger, halved, functional.mse_loss, 500),
    "key points": Kind(keypoints, corners, lambda output, target: 10 * functional.mse_loss(output, target), 800),
    "U-Net": Kind(UNet, regions, of_classes, 500),
    "MobileNetV3 blocks": Kind(mobilenet, classes, of_classes, 800),
    "DenseNet blocks": Kind(densenet, classes, of_classes, 400),
    "ResNeXt blocks": Kind(grouped, classes, of_classes, 400),
    "MLP-Mixer": Kind(Mixer, classes, of_classes, 800),
    "GPT-2 layers": Kind(Language, text, of_classes, 1500),
}


def make(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Train and export a net of a kind, unless that was done; return it, its calibration data and its test data.

    Calibration data have no labels; test data have targets.
    """
    paths = [folder / f"{name.replace(', ', '-').replace(' ', '-')}{end}" for end in (".onnx", ".npz", ".test.npz")]
    net, calibration, test = paths
    if not net.exists():
        kind = KINDS[name]
        parts = {
            part: kind.data(count, part, np.random.default_rng(seed))
            for seed, (part, count) in enumerate((("train", TRAIN), ("calibrate", CALIBRATE), ("test", TEST)))
        }
        module = _trained(kind, *parts["train"])
        given: dict[str, Any] = parts["calibrate"][0]
        judged: dict[str, Any] = parts["test"][0]
        np.savez(calibration, **given)
        np.savez(test, **judged, labels=parts["test"][1])
        _export(module, kind, parts["test"][0], net)
    return net, calibration, test


def _trained(kind: Kind, inputs: Mapping[str, Array], targets: Array) -> nn.Module:
    torch.manual_seed(0)
    module, rng = kind.build(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=1e-3)
    for step in range(kind.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / kind.steps))
        chosen = rng.integers(0, len(targets), BATCH)
        output = module(*(torch.from_numpy(values[chosen]) for values in inputs.values()))
        optimizer.zero_grad()
        kind.loss(output, torch.from_numpy(targets[chosen])).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
    return module.eval()


def _export(module: nn.Module, kind: Kind, inputs: Mapping[str, Array], path: Path) -> None:
    example = tuple(torch.from_numpy(values[:2]) for values in inputs.values())
    names, unfinished = list(inputs), path.with_suffix(".part")
    if kind.legacy:
        torch.onnx.export(
            module, example, str(unfinished), dynamo=False, input_names=names, output_names=["output"],
            dynamic_axes={name: {0: "n"} for name in (*names, "output")}, opset_version=17,
        )  # fmt: skip
    else:
        sizes = tuple({0: torch.export.Dim("n")} for _ in names)
        torch.onnx.export(
            module, example, str(unfinished), dynamo=True, input_names=names, output_names=["output"],
            external_data=False, verbose=False, dynamic_shapes=sizes,
        )  # fmt: skip
    unfinished.rename(path)
