"""``python -m benchmarks [NAME]``: run one benchmark, or all. Exit 1 where a goal does not hold."""

import importlib
import pkgutil
import sys

import benchmarks
from benchmarks.table import report


def names() -> list[str]:
    """Every module here with a ``measure()`` is a benchmark; its name is written with hyphens."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name.replace("_", "-") for name in found if name not in {"__main__", "table"})


def main() -> None:
    chosen = sys.argv[1:] or names()
    unknown = set(chosen) - set(names())
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    held = [report(name, importlib.import_module(f"benchmarks.{name.replace('-', '_')}").measure()) for name in chosen]
    sys.exit(0 if all(held) else 1)


main()
