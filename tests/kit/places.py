"""Where the project lies, and the sample data beside it."""

from pathlib import Path

__all__ = ["ROOT", "SHARED", "TESTS"]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # absent on most machines: what needs it is skipped, and fails where CI=true
