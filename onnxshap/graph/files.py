"""Files that appear whole or not at all: written beside their place, synced, then renamed.

A link stays one: the file that it points to is replaced. Who may read and write a file stays as it was, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxshap.errors import ModelError, first_line

_RANDOM = 10
"""Characters that the name of a temporary file has beside the file's own, as `tempfile` makes them."""
_ANOTHER = "choose another output path"


def place_of(path: str | Path, remedy: str = _ANOTHER) -> Path:
    """Return the file that an output path stands for, which need not be there yet: links are followed.

    Raises:
        ModelError: it is empty, what is there is no plain file, or it cannot be reached; `remedy` ends the message.
    """
    if not os.fspath(path):
        raise ModelError(f"the output path is empty; {remedy}")
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ModelError(f"{path}: is no plain file; {remedy}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _unwritable(path, error, remedy) from error
    return Path(os.path.realpath(path))


def check_writable(path: str | Path, remedy: str = _ANOTHER) -> None:
    """Refuse an output path that could not be written at the end.

    Raises:
        ModelError: as `place_of`, or its folder does not take files.
    """
    place = place_of(path, remedy)
    try:
        _temporary(place).unlink()
    except OSError as error:
        raise _unwritable(path, error, remedy) from error


def _unwritable(path: str | Path, error: OSError | ValueError, remedy: str) -> ModelError:
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return ModelError(f"{path}: cannot be written ({reason}); {remedy}")


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
        places = {path: place_of(path) for path in paths}
        current = paths[0]
        try:
            temporaries = []
            for current in paths:
                temporaries.append(_temporary(places[current]))
                cleanup.callback(temporaries[-1].unlink, missing_ok=True)
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            for path, temporary in zip(paths, temporaries, strict=True):
                temporary.chmod(_mode(places[path]))
            with contextlib.ExitStack() as undo:
                for current, temporary in zip(paths, temporaries, strict=True):
                    if len(paths) > 1:
                        undo.callback(_restorer(places[current], cleanup))
                    temporary.replace(places[current])
                undo.pop_all()
        except OSError as error:
            raise _unwritable(current, error, _ANOTHER) from error


def _temporary(path: Path) -> Path:
    """Return a new file beside a path, its name no longer than that one if that is long."""
    own = os.fsencode(path.name)
    begin = own[: max(_RANDOM, len(own) - _RANDOM)].decode(sys.getfilesystemencoding(), "ignore")
    handle, name = tempfile.mkstemp(prefix=f".{begin}.", dir=path.parent)
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


def _mode(path: Path) -> int:
    """Return the permissions of the file at a path, or of a new one."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
