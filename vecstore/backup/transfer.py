"""Files into a repository and out of it: in parallel, in bounded memory, checked on the way, at a limited rate.

Nothing is loaded whole but small files; each worker holds a few pieces. What was moved already is not moved again, so
that a transfer that was cut short goes on where it was. This module does the I/O of local files.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import xxhash

from ..errors import Damaged, Exhausted, NotFound, Unavailable
from .manifest import SnapshotFile
from .repository import READ_BYTES, Repository, yield_to_others

__all__ = ["Progress", "Throttle", "check_file", "check_files", "download", "make_durable", "upload"]

WORKERS = 2
CHECK_BYTES = 1 << 20
REST_SHARE = 3.0
"""The slowest hundredth of searches is what waits for a core or for memory that is being copied: with three quarters
of rest it is a search like others."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Throttle:
    """Lets so many bytes pass in a second, for all threads together, and gives way to others. Thread-safe.

    Parameters
    ----------
    bytes_per_s
        0 lets all pass.
    served
        How many calls of others were served so far. While that number moves, whoever moves files rests
        `REST_SHARE` times as long as it works.
    """

    def __init__(self, bytes_per_s: float, served: Callable[[], int] = lambda: 0) -> None:
        self._rate = bytes_per_s
        self._served = served
        self._seen = served()
        self._lock = threading.Lock()
        self._free_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether all may pass."""
        return not self._rate

    def take(self, size: int) -> None:
        """Wait until so many bytes may pass."""
        if not self._rate:
            return
        with self._lock:
            now_s = time.monotonic()
            start_s = max(self._free_s, now_s)
            self._free_s = start_s + size / self._rate
        time.sleep(start_s - now_s)

    def rest(self, worked_s: float) -> None:
        """Rest after a piece of work, if others were served meanwhile."""
        served = self._served()
        if served != self._seen:
            self._seen = served
            time.sleep(REST_SHARE * worked_s)


class _Meter:
    """Counts bytes for a progress callback, which is called by one thread at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)


def check_file(path: str) -> tuple[int, str]:
    """Return size and xxh3_128 of a file."""
    state, size = xxhash.xxh3_128(), 0
    # One buffer, read into again and again: giving back large pieces would hold the interpreter lock.
    buffer = memoryview(bytearray(CHECK_BYTES))
    with open(path, "rb", buffering=0) as source:
        while count := source.readinto(buffer):
            state.update(buffer[:count])
            size += count
    return size, state.hexdigest()


def check_files(paths: Sequence[str]) -> list[tuple[int, str]]:
    """Return size and xxh3_128 of files, read by threads that yield."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="vecstore-check", initializer=yield_to_others) as pool:
        return list(pool.map(check_file, paths))


def upload(
    repository: Repository,
    files: Sequence[tuple[str, SnapshotFile]],
    throttle: Throttle,
    progress: Progress | None = None,
) -> None:
    """Write the contents of files, by path, that the repository does not have; they are durable then."""
    meter = _Meter(sum(file.size for _, file in files), progress)

    def one(path: str, file: SnapshotFile) -> None:
        start_s = time.monotonic()
        if throttle.is_open:
            repository.put_file(file.object, path, file.size)
        else:
            repository.put(file.object, _metered(path, throttle))
        meter(file.size)
        throttle.rest(time.monotonic() - start_s)

    if files:
        # The kernel copies from disk to disk as fast with one thread, and leaves a core to those who search.
        _run(one, files, 1 if repository.is_local else WORKERS)
        repository.settle()


def download(
    repository: Repository, files: Sequence[SnapshotFile], folder: str, progress: Progress | None = None
) -> int:
    """Bring files below a folder, each checked and durable; return the bytes that were read from the repository.

    Raises
    ------
    Damaged
        An object is missing, or not what was written; the details name it and the file.
    """
    meter = _Meter(sum(file.size for file in files), progress)
    read: list[int] = []

    def one(file: SnapshotFile) -> None:
        path = os.path.join(folder, file.path)
        if not (os.path.exists(path) and check_file(path) == (file.size, file.check)):
            _fetch(repository, file, path)
            read.append(file.size)
        meter(file.size)

    for name in sorted({os.path.dirname(os.path.join(folder, file.path)) for file in files}):
        os.makedirs(name, exist_ok=True)
    _run(one, [(file,) for file in files])
    for name in sorted({os.path.dirname(os.path.join(folder, file.path)) for file in files} | {folder}):
        make_durable(name)
    return sum(read)


def _fetch(repository: Repository, file: SnapshotFile, path: str) -> None:
    state, size = xxhash.xxh3_128(), 0
    draft = path + ".part"
    try:
        with open(draft, "wb") as target:
            for piece in repository.stream(file.object):
                state.update(piece)
                size += len(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
    except NotFound as exc:
        raise Damaged(
            f"repository: {file.object} is missing: it is {file.path} of the snapshot",
            details={"object": file.object, "file": file.path},
        ) from exc
    except OSError as exc:
        if isinstance(exc, Unavailable):
            raise
        raise Exhausted(f"writing {path} failed: {exc}", details={"limit": "disk", "file": path}) from exc
    _same(file, size, state.hexdigest(), file.object)
    os.rename(draft, path)


def _same(file: SnapshotFile, size: int, check: str, where: str) -> None:
    if (size, check) != (file.size, file.check):
        raise Damaged(
            f"{where} is not what was written: {size} bytes with hash {check}, for {file.path} expected are "
            f"{file.size} with {file.check}",
            details={"object": file.object, "file": file.path},
        )


def _metered(path: str, throttle: Throttle) -> Iterator[bytes]:
    for piece in _pieces(path):
        throttle.take(len(piece))
        yield piece


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as source:
        while piece := source.read(READ_BYTES):
            yield piece


def _run(one: Callable[..., None], work: Sequence[Sequence[object]], workers: int = WORKERS) -> None:
    """Do all work with a few threads; the first error ends what has not begun."""
    with ThreadPoolExecutor(workers, thread_name_prefix="vecstore-transfer", initializer=yield_to_others) as pool:
        waiting = [pool.submit(one, *arguments) for arguments in work]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            for left in waiting:
                left.cancel()
            raise


def make_durable(folder: str) -> None:
    """Sync a folder: names in it are durable then."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
