"""An evidence bundle around the log of a node that really runs: its study's papers, and a run without a release."""

import json
from pathlib import Path
from typing import Any

from connector.governance.permit_status import IssuerService
from connector.node import Node
from kit.hospital import Hospital
from vht_federate.evidence.bundle import BundleParts, write_bundle
from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.verify import Verification, verify_bundle
from vht_federate.signing.keys import SigningKey

__all__ = ["verified"]


def verified(node: Node, hospital: Hospital, visit_id: str, folder: Path, **run: Any) -> Verification:
    """What the verification says of a bundle, written into the new ``folder``, with the node's log as it is now."""
    visit, coordinator = node.visits.get(visit_id), SigningKey.generate()
    issuer = IssuerService(hospital.issuer.url, hospital.tls.ca)
    name = node.settings.name
    claims = {
        "study_id": visit.study_id,
        "state": "stopped",
        "nodes": {name: {"visit": visit_id, "lost": None}},
        "rounds": [],
        "releases": {},
        **run,
    }
    parts = BundleParts(
        permit=visit.permit,
        study=visit.request,
        user_key=hospital.user.public,
        nodes={name: node.evidence.export(visit.permit_id)},
        statuses={"end": issuer.fetch()},
        run=json.dumps(claims).encode(),
        receipts={name: [visit.receipt]} if visit.receipt else {},
    )
    issuer.close()
    write_bundle(
        folder, parts, coordinator, study_id=visit.study_id, permit_id=visit.permit_id, created_at=node.clock()
    )
    trust = TrustFile.of(hospital.issuer.key.public, coordinator.public, {name: node.key.public})
    return verify_bundle(folder, trust)
