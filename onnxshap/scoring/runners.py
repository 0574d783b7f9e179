"""Where jobs run: here, in local processes, or on a cluster. A lost worker's jobs are repeated.

A runner takes jobs and hands their results back in any order; results depend on the job alone, never on the runner.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from onnxshap.backend import OrtBackend
from onnxshap.errors import OnnxshapError, one_line
from onnxshap.game import Setting
from onnxshap.methods.base import Tell
from onnxshap.scoring.jobs import Job, Player, Result

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_GO_ON = "run the same command again (score and prune go on with --journal), or leave out --cluster"
PATIENCE = 60.0
"""Seconds to wait for a cluster's workers to come back."""
_POLL = 0.01
_WATCH = 1.0
"""Seconds after which a worker looks whether there still is who started it."""
_A_CORE = 4
"""Workers a core, at most: more of them only take memory."""
_MOST_LOSSES = 4
"""How often in a row all workers may be lost without one result."""
_ENDING = tuple({signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})
"""Signals that end a command by an exception."""
_STARTED_BY = "ONNXSHAP_WORKERS_OF"
"""Environment variable that tells workers whose they are."""
_GUARD = "a script that starts workers needs `if __name__ == '__main__':`"
_FIRST_LOSSES = 1
"""The same before any result: they may not be able to start at all."""


class Runner(Protocol):
    """Runs jobs.

    Attributes:
        slots: how many jobs keep it busy.
    """

    slots: int

    def submit(self, job: Job) -> None:
        """Take a job."""

    def next(self) -> tuple[Job, Result]:
        """Return a finished job and its result; waits for one.

        Raises:
            OnnxshapError: the job failed, or there is nobody left to run it.
        """

    def close(self) -> None:
        """Give up what is still running."""


class Here:
    """Runs jobs one after the other in this process."""

    slots = 1

    def __init__(self, setting: Setting, method: str, tell: Tell) -> None:
        self._player, self._tell = Player(setting, method), tell
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._waiting.append(job)

    def next(self) -> tuple[Job, Result]:
        """Return the oldest job and its result."""
        job = self._waiting.popleft()
        return job, self._player.play(job, self._tell)

    def close(self) -> None:
        """Nothing is running."""


# --- local processes -------------------------------------------------------------------------------------------------

_player: Player | None = None
"""The player of a worker process."""


def _start(path: str, parent: int) -> None:
    global _player
    threading.Thread(target=_end_with, args=(parent, Path(path).parent), daemon=True).start()
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:  # who started it is gone, and another worker has cleaned up
        os._exit(1)
    setting, method = pickle.loads(content)
    _player = Player(setting, method)


def _end_with(parent: int, folder: Path) -> None:
    """End this process when the one that started it is gone, killed without a chance to end it."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _play(job: Job) -> Result:
    assert _player is not None
    return _player.play(job)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Processes:
    """Runs jobs in processes of this machine, its cores shared out among them."""

    def __init__(self, setting: Setting, method: str, workers: int) -> None:
        workers = min(workers, _A_CORE * cores())
        self.slots = 2 * workers
        self._workers, self._threads = workers, max(1, cores() // workers)
        if os.environ.get(_STARTED_BY, str(os.getpid())) != str(os.getpid()):  # a worker that reads the script again
            raise OnnxshapError(f"a worker was to start workers; {_GUARD}")
        content = payload(setting, method, self._threads)
        self._jobs: dict[Future[Result], Job] = {}
        self._losses, self._allowed = 0, _FIRST_LOSSES
        with _startable(), contextlib.ExitStack() as cleanup:
            with _undisturbed():
                # through a file: whoever writes much to a process that dies at its start waits for ever
                folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="onnxshap-"))
                self._payload = Path(folder) / "payload"
                self._payload.write_bytes(content)
                wanted = {_STARTED_BY: str(os.getpid())} | dict.fromkeys(_THREAD_VARIABLES, str(self._threads))
                cleanup.enter_context(_environment(wanted))  # read when a worker starts
                self._pool = self._new_pool()
            self._cleanup = cleanup.pop_all()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(str(self._payload), os.getpid()),
        )

    def submit(self, job: Job) -> None:
        """Take a job."""
        try:
            with _startable(), _undisturbed():
                self._jobs[self._pool.submit(_play, job)] = job
        except BrokenProcessPool as error:
            self._repeat(error)
            self.submit(job)

    def next(self) -> tuple[Job, Result]:
        """Return a finished job; those of workers that died run again."""
        while True:
            done, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
            future = next(iter(done))
            try:
                result = future.result()
            except BrokenProcessPool as error:
                self._repeat(error)
                continue
            self._losses, self._allowed = 0, _MOST_LOSSES
            return self._jobs.pop(future), result

    def _repeat(self, error: BrokenProcessPool) -> None:
        """Start new workers on the jobs that are open; one that died has taken its pool with it."""
        self._losses += 1
        if self._losses > self._allowed:
            raise OnnxshapError(f"workers keep dying ({error}); use fewer (--workers), or none; {_GUARD}") from error
        finished = {f: j for f, j in self._jobs.items() if f.done() and f.exception() is None}
        lost = [job for future, job in self._jobs.items() if future not in finished]
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._jobs = finished
        with _startable():
            self._pool = self._new_pool()
        with _startable(), _undisturbed():
            for job in lost:
                self._jobs[self._pool.submit(_play, job)] = job

    def close(self) -> None:
        """End the workers."""
        with _undisturbed():
            processes = list((getattr(self._pool, "_processes", None) or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._cleanup.close()


@contextlib.contextmanager
def _startable() -> Iterator[None]:
    """Turn what a machine that takes no more processes says into one error."""
    try:
        yield
    except BrokenProcessPool:
        raise
    except (OSError, ImportError, NotImplementedError, RuntimeError) as error:  # of no semaphores, or no threads
        raise OnnxshapError(
            f"workers cannot be started ({one_line(error, 200)}); use fewer (--workers), or none"
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off what ends this process, until processes have started or ended whole, and what they need with them.

    Those that start meanwhile do not see an interrupt from the keyboard, which goes to all of a terminal. Who started
    them sees it, and ends them; each of them would print a traceback first.
    """
    came = list[int]()
    try:
        with _handlers(lambda number, frame: came.append(number)), _blocked():
            yield
    finally:  # also where it is what workers died of
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def _handlers(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let signals that would raise here be handled by something else for a while, whatever thread they come to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: found for number in _ENDING if callable(found := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Block interrupts from the keyboard in this thread, and in processes that it starts: they inherit that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def payload(setting: Setting, method: str, threads: int) -> bytes:
    """Return what a worker needs, as bytes.

    Raises:
        OnnxshapError: the payoff is a function that cannot be sent.
    """
    backend = setting.traced.backend
    if isinstance(backend, OrtBackend) and not backend.threads:
        backend = replace(backend, threads=threads)
    sent = replace(setting, traced=replace(setting.traced, backend=backend))
    try:
        return pickle.dumps((sent, method), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise OnnxshapError(
            f"payoff {setting.payoff.name!r} cannot be sent to workers ({error}); define its function in a module, or "
            "leave out --workers and --cluster"
        ) from error


# --- a cluster -------------------------------------------------------------------------------------------------------

_players: dict[tuple[str, int], Player] = {}
"""Players of a cluster's worker, by payload and thread."""


def _same(content: bytes) -> bytes:
    return content


def _play_anywhere(content: bytes, name: str, job: Job) -> Result:
    key = name, threading.get_ident()
    if key not in _players:
        for old in [k for k in _players if k[0] != name]:
            _players.pop(old, None)
        _players[key] = Player(*pickle.loads(content))
    return _players[key].play(job)


class Cluster:
    """Runs jobs on a dask.distributed cluster; its scheduler repeats those of lost workers."""

    def __init__(self, setting: Setting, method: str, address: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise OnnxshapError("--cluster needs dask.distributed: pip install 'onnxshap[dask]'") from error
        self._address = address
        content = payload(setting, method, 1)
        self._client = distributed.Client.__new__(distributed.Client)
        try:
            self._client.__init__(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            self._client.status = "closed"  # else it waits for what never started when it is collected, and says so
            raise OnnxshapError(
                f"cluster {address!r} cannot be reached ({one_line(error, 200)}); start it (dask scheduler, "
                "dask worker), give its address as tcp://host:8786, or leave out --cluster"
            ) from error
        self._asked, self._there = 0.0, True
        self._jobs: dict[Any, Job] = {}
        self._done = distributed.as_completed(loop=self._client.loop, raise_errors=False)
        with self._lost():
            self._client.wait_for_workers(1, timeout=10)
            self._name = "onnxshap-" + hashlib.sha256(content).hexdigest()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a large graph: unlike scattered data it is never lost
                self._content = self._client.submit(_same, content, key=self._name)
            self.slots = 2 * max(1, sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> None:
        """Take a job."""
        with self._lost():
            future = self._client.submit(_play_anywhere, self._content, self._name, job, pure=False, retries=0)
            self._jobs[future] = job
            self._done.add(future)

    def next(self) -> tuple[Job, Result]:
        """Return a finished job; waits a minute for workers where all are gone."""
        with self._lost():
            alone_since = None
            while not self._done.has_ready():
                time.sleep(_POLL)
                now = time.monotonic()
                if self._client.status != "running":
                    raise OnnxshapError(f"cluster {self._address!r} was lost; {_GO_ON}")
                if self._workers():
                    alone_since = None
                elif alone_since is None:
                    alone_since = now
                elif now - alone_since > PATIENCE:
                    raise OnnxshapError(f"cluster {self._address!r} has no worker left; start some and {_GO_ON}")
            future = next(self._done)
            job = self._jobs.pop(future)
            return job, future.result(timeout=10 * PATIENCE)

    def _workers(self) -> bool:
        """Return whether there are workers; asks every second at most."""
        now = time.monotonic()
        if now - self._asked > 1:
            self._asked, self._there = now, bool(self._client.nthreads())
        return self._there

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """Turn what can go wrong with a cluster into one error."""
        try:
            yield
        except OnnxshapError:
            raise
        except Exception as error:
            raise OnnxshapError(f"cluster {self._address!r} was lost ({one_line(error, 200)}); {_GO_ON}") from error

    def close(self) -> None:
        """Drop what is running and leave."""
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._jobs))
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)
