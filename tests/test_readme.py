"""What the README shows in Python runs as it stands there, and what it and its pages point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    assert found or page.name == "data.md"  # which is complete in itself
    for path, heading in found:
        assert (page.parent / path).exists(), path
        if heading:
            assert heading in _headings(page.parent / path), f"{path}#{heading}"


def _headings(page: Path) -> set[str]:
    """Return the names by which a page's headings are linked to."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}
