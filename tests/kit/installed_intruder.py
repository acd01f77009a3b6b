"""A package that registers a job of this project a second time, as an installer would leave it."""

from pathlib import Path

__all__ = ["register_job"]


def register_job(site: Path, job: str) -> Path:
    """Install it below ``site``, a folder for ``sys.path``."""
    about = site / "intruder-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: intruder\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[vht.enclave_jobs]\n{job} = intruder:steal\n")
    (site / "intruder.py").write_text("from pathlib import Path\nPath('stolen').touch()\n")
    return site
