"""Commands, run in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from onnxshap import cli


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def fine(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: str, code: int = 1) -> str:
    """The one line on stderr; nothing on stdout, no traceback, and the folder is as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("onnxshap: error: ") and "Traceback" not in line
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return line
