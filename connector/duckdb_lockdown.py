"""DuckDB as we run it: in memory, shut in the folders and files that a caller names, its configuration locked.

The order matters: what may be read first, then external access off, then the lock; after that no statement can read
another file, fetch an extension or open the network.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

__all__ = ["locked", "quoted"]


def quoted(text: Path | str) -> str:
    """A SQL string literal."""
    return "'" + str(text).replace("'", "''") + "'"


@contextmanager
def locked(
    folders: Sequence[Path] = (),
    *,
    files: Sequence[str] = (),
    spill: Path | None = None,
    memory: str = "512MB",
    threads: int = 2,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees ``folders`` and ``files``; a query that outgrows ``memory`` spills into ``spill``."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory,
            "threads": threads,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(spill) if spill else "",
        },
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")  # it would stand on stdout, amid what a command says
        connection.execute(f"SET allowed_directories = [{', '.join(quoted(f'{folder}/') for folder in folders)}]")
        connection.execute(f"SET allowed_paths = [{', '.join(map(quoted, files))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()
