"""A signed component package: what a twin platform installs, and what an auditor compares with the evidence.

component.json          typed ports of the profile, with LOINC and UCUM, bounds and the output
code/…                  the component's files, borrowed ones too (their digest is in the permit)
weights.safetensors     the trained state
model_card.md           for people
privacy_statement.json  schema in packaging/schemas
provenance.json         the run: rounds, participants, digests of what each node released
manifest.json, manifest.jws
"""

from pathlib import Path
from typing import Any

import numpy as np

from vht_federate.components.contract import Component, Port, read_component
from vht_federate.components.digest import ComponentFiles, component_digest
from vht_federate.errors import InputError, VerificationError
from vht_federate.packaging.card import CardFacts, render_card
from vht_federate.packaging.statement import read_statement
from vht_federate.signing.keys import PublicKey, SigningKey
from vht_federate.signing.signed_manifest import Sealed, empty_folder, seal, unseal, write_json
from vht_federate.tensors import read_tensors

__all__ = ["ALLOWED", "TYP", "component_json", "verify_package", "write_package"]

TYP = "vht-package+jwt"
REQUIRED = (
    "component.json",
    "code/component.toml",
    "weights.safetensors",
    "model_card.md",
    "privacy_statement.json",
    "provenance.json",
)
ALLOWED = (
    r"component\.json|weights\.safetensors|model_card\.md|privacy_statement\.json|provenance\.json",
    r"code/([A-Za-z0-9_-]+/){0,3}[A-Za-z0-9_-]+\.(py|toml|md|json)",
)


def component_json(component: Component, profile: str, digest: str) -> dict[str, Any]:
    """The package's machine-readable description."""
    return {
        "schema_version": "1",
        "name": component.name,
        "version": component.version,
        "title": component.title,
        "description": component.description,
        "license": component.license,
        "digest": digest,
        "entry": component.entry,
        "profile": profile,
        "profile_title": component.profile(profile).title,
        "inputs": [_port_json(port) for port in component.inputs(profile)],
        "predicts": _port_json(component.outcome(profile)),
        "output": component.output.model_dump(mode="json"),
    }


def write_package(
    folder: Path,
    component_dir: Path,
    profile: str,
    *,
    weights: bytes,
    facts: CardFacts,
    statement: dict[str, Any],
    run: dict[str, Any],
    key: SigningKey,
) -> Sealed:
    """Write and seal a package into the new ``folder``.

    ``weights`` are safetensors bytes. Raises InputError for weights or a statement that are none.
    """
    component = read_component(component_dir)
    files = ComponentFiles.read(component_dir)
    digest = files.digest
    _check_weights(weights)
    read_statement(statement)
    empty_folder(folder)
    for name, content in files.files.items():
        target = folder / "code" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    card = component_dir / "card.md"
    description = card.read_text(encoding="utf-8") if card.exists() else ""
    write_json(folder / "component.json", component_json(component, profile, digest))
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "model_card.md").write_text(
        render_card(component, profile, description, facts, statement), encoding="utf-8"
    )
    write_json(folder / "privacy_statement.json", statement)
    write_json(folder / "provenance.json", run)
    manifest = _manifest_facts(component, profile, digest, facts, statement)
    return seal(folder, manifest, key, typ=TYP, allowed=ALLOWED)


def _manifest_facts(
    component: Component, profile: str, digest: str, facts: CardFacts, statement: dict[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "component",
        "study_id": facts.study_id,
        "permit_id": facts.permit_id,
        "created_at": facts.created_at.isoformat(),
        "component": {"name": component.name, "version": component.version, "profile": profile, "digest": digest},
        "license": component.license,
        "epsilon": statement["epsilon"],
        "delta": statement["delta"],
        "nodes": facts.nodes,
        "evaluation": facts.evaluation,
        **_intervals(facts),
    }


def _intervals(facts: CardFacts) -> dict[str, Any]:
    if not facts.evaluation or facts.evaluation_intervals is None:
        return {}
    intervals = {name: list(ends) for name, ends in facts.evaluation_intervals.items()}
    return {"evaluation_intervals": intervals, "evaluation_threshold": facts.evaluation_threshold}


def verify_package(folder: Path, key: PublicKey | None) -> Sealed:
    """Check the seal, every file, and that the code is the component that the manifest names.

    ``key`` None checks all but who signed. Raises VerificationError.
    """
    sealed = unseal(folder, key, typ=TYP, allowed=ALLOWED, required=REQUIRED)
    if component_digest(folder / "code") != sealed.manifest.get("component", {}).get("digest"):
        raise VerificationError("code/ is not the component that the manifest names", code="VHT-VERIFY-PACKAGE")
    return sealed


def _port_json(port: Port) -> dict[str, Any]:
    return port.model_dump(mode="json", exclude={"source", "direction"}, exclude_defaults=True)


def _check_weights(weights: bytes) -> None:
    tensors = read_tensors(weights, InputError("the weights are not safetensors", code="VHT-INPUT-WEIGHTS"))
    if not tensors or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError("the weights are empty or not finite", code="VHT-INPUT-WEIGHTS")
