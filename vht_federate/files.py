"""Files that belong to one user alone, and files that are replaced as a whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["READABLE", "create_private", "flush_to_disk", "private_files", "replace_file", "sync"]

READABLE = 0o666  # by whom the umask lets


def create_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600. Raises FileExistsError for one that is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path``, so that a crash leaves the old content or the new. ``mode``: less what the umask takes.

    The new content waits beside it as ``.NAME.next``, which a crash may leave and the next call takes over.
    """
    waiting = path.with_name(f".{path.name}.next")
    descriptor = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        flush_to_disk(file)
    waiting.replace(path)
    sync(path.parent)


def flush_to_disk(file: IO[Any]) -> None:
    """What was written to ``file`` survives a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """The content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def private_files(state: Path) -> Iterator[None]:
    """Inside, whatever this process makes is its user's alone; ``state`` is, too, however it was made before."""
    before = os.umask(0o077)
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(PermissionError):  # a volume that belongs to the container's host: its files are private still
            state.chmod(0o700)
        yield
    finally:
        os.umask(before)
