"""What a verifier says: a check that held, or an error that names the file and, where there is one, the entry."""

from dataclasses import dataclass

from vht_federate.errors import VerificationError

__all__ = ["Check", "broken", "entry_place"]

TOLERANCE = 1e-6  # of epsilon, between two computations of the same events


@dataclass(frozen=True)
class Check:
    """One thing that was verified: ``where`` is a file of the bundle, ``what`` a sentence."""

    where: str
    what: str


def broken(where: str, what: str, code: str) -> VerificationError:
    """``code`` is the part after VHT-VERIFY-."""
    return VerificationError(
        f"{where}: {what}",
        code=f"VHT-VERIFY-{code}",
        hint="do not rely on this bundle; ask its sender for the original, and the node for its own log",
    )


def entry_place(file: str, index: int) -> str:
    return f"{file} entry {index}"
