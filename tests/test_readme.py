"""What the README shows in Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    before, after = map(float, capsys.readouterr().out.split())
    assert after > before - 0.05
    assert (tmp_path / "small.onnx").stat().st_size < (ROOT / "models" / "fashion_vgg.onnx").stat().st_size


def test_there_is_one() -> None:
    assert BLOCKS
