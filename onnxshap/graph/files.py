"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxshap.errors import ModelError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it, synced to disk, when the block ends well; else nothing.

    Raises:
        ModelError: the folder does not exist or cannot be written.
    """
    with whole_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield a temporary path beside each path; all replace theirs when the block ends well, or none does.

    Raises:
        ModelError: a folder does not exist or cannot be written.
    """
    with contextlib.ExitStack() as cleanup:
        current = paths[0]
        try:
            temporaries = []
            for current in paths:
                temporaries.append(_temporary(current))
                cleanup.callback(temporaries[-1].unlink, missing_ok=True)
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
            with contextlib.ExitStack() as undo:
                for current, temporary in zip(paths, temporaries, strict=True):
                    if len(paths) > 1:
                        undo.callback(_restorer(current, cleanup))
                    temporary.replace(current)
                undo.pop_all()
        except OSError as error:
            raise ModelError(f"{current}: cannot be written ({error.strerror}); choose another output path") from error


def _temporary(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    return Path(name)


def _restorer(path: Path, cleanup: contextlib.ExitStack) -> Callable[[], object]:
    """Return what puts the present file at a path back: kept under another name until all is done."""
    if not path.exists():
        return lambda: path.unlink(missing_ok=True)
    backup = _temporary(path)
    cleanup.callback(backup.unlink, missing_ok=True)
    backup.unlink()
    try:
        os.link(path, backup)
    except OSError:  # no file system of links
        shutil.copyfile(path, backup)
    return lambda: backup.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
