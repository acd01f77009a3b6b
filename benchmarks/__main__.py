"""``python -m benchmarks [NAME]``: run one benchmark, or all. Exit 1 where a goal does not hold."""

import importlib
import pkgutil
import sys

import benchmarks
from benchmarks.table import NotHere, report


def names() -> list[str]:
    """Every module here with a ``measure()`` is a benchmark; its name is written with hyphens."""
    module_names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name.replace("_", "-") for name in module_names if name not in {"__main__", "table"})


def main() -> None:
    chosen = sys.argv[1:] or names()
    unknown = set(chosen) - set(names())
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    goals_held = [measured(name) for name in chosen]
    sys.exit(0 if all(goals_held) else 1)


def measured(name: str) -> bool:
    """Whether every goal holds; a benchmark that this machine cannot run is left out, with the reason."""
    try:
        rows = importlib.import_module(f"benchmarks.{name.replace('-', '_')}").measure()
    except NotHere as reason:
        sys.stdout.write(f"{name}: not measured here, {reason}\n")
        return True
    return report(name, rows)


main()
