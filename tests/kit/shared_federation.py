"""The federation that all federation tests share, after its study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.studies import terms_for
from deploy.local_federation import LocalFederation, StudyTerms
from kit.outgoing_connections import Outgoing
from kit.tls_wiretap import Wiretap
from kit.walked_guide import WalkedGuide

__all__ = ["Ran", "small_terms"]


@dataclass(frozen=True)
class Ran:
    """The shared federation after its study: still running, everything it did on disk and on record."""

    federation: LocalFederation
    guide: WalkedGuide
    wiretap: Wiretap
    outgoing: Outgoing
    permit_id: str
    run: dict[str, Any]
    canaries: frozenset[bytes]

    @property
    def bundle(self) -> Path:
        return self.federation.root / "run" / "bundle"


def small_terms(**changes: Any) -> StudyTerms:
    """The demo's study with fewer rounds."""
    terms = terms_for(uci=False)
    fields = {**terms.__dict__, "study_id": "shared-study", "training": {**terms.training, "rounds": 3}}
    return StudyTerms(**{**fields, **changes})
