"""Text lines for the text-direction model: rendered, upright (0) or turned by 180 degrees (1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def text_lines(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images float32[count, 3, 48, 192] in [-1, 1] and labels int64[count], half of them upside down."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, 48, 192), np.float32)
    labels = np.arange(count, dtype=np.int64) % 2
    for k in range(count):
        words = ["".join(rng.choice(list(_LETTERS), rng.integers(3, 8))) for _ in range(3)]
        shade, ink = (int(v) for v in (rng.integers(200, 256), rng.integers(0, 80)))
        page = Image.new("L", (192, 48), shade)
        font = ImageFont.load_default(size=int(rng.integers(20, 32)))
        ImageDraw.Draw(page).text((4, int(rng.integers(4, 12))), " ".join(words), fill=ink, font=font)
        turned = page.rotate(180) if labels[k] else page
        images[k] = np.asarray(turned, np.float32) / 127.5 - 1
    return images, labels
