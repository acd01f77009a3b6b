"""Component packages and the codebook: what is written verifies, and any change is named."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.commands import exit_and_envelope
from safetensors.numpy import save

from vht_federate.components.contract import Profile, read_component
from vht_federate.components.digest import component_digest
from vht_federate.errors import InputError, VerificationError
from vht_federate.framing import Reply
from vht_federate.packaging.card import CardFacts
from vht_federate.packaging.codebook import Codebook, codebook_for
from vht_federate.packaging.component import verify_package, write_package
from vht_federate.packaging.statement import plain_words, read_statement, reported_gradient_engines, statement_schema
from vht_federate.privacy.statement import privacy_statement
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.signed_manifest import Sealed
from vht_federate.testing.rehearsal import COMPONENT, PROFILE, REHEARSED_PLAN

CONTRACT = read_component(COMPONENT)
STATEMENT = privacy_statement(REHEARSED_PLAN, {"hospital-1": REHEARSED_PLAN.events()})
FACTS = CardFacts(
    study_id="study-1",
    permit_id="permit-1",
    purpose="53.1.e.ii",
    created_at=datetime(2026, 6, 1, tzinfo=UTC),
    nodes=4,
    rounds=2,
    patients_noised=1234.5,
    training={"rounds": 2},
    evaluation={"auc": 0.7654, "sensitivity": 0.275},
    evaluation_intervals={"auc": (0.71, 0.82), "sensitivity": (0.0, 1.0)},
)


def trained_weights() -> bytes:
    from vht_federate.components.loader import load_model

    return save({name: tensor.numpy() for name, tensor in load_model(COMPONENT, PROFILE).state_dict().items()})


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def package(tmp_path: Path, key: SigningKey) -> Sealed:
    weights = save({"weight": np.ones(3, dtype=np.float32)})
    return write_package(
        tmp_path / "p", COMPONENT, PROFILE, weights=weights, facts=FACTS, statement=STATEMENT, run={"a": 1}, key=key
    )


# --- packages -----------------------------------------------------------------------------------------------------


def test_a_package_verifies_and_describes_its_ports(package: Sealed, key: SigningKey) -> None:
    assert verify_package(package.folder, key.public).sha256 == package.sha256
    described = json.loads((package.folder / "component.json").read_text())
    assert described["digest"] == component_digest(COMPONENT) == component_digest(package.folder / "code")
    pressure = next(port for port in described["inputs"] if port["name"] == "systolic_bp")
    assert (pressure["loinc"], pressure["unit"], pressure["bounds"]) == ("8480-6", "mm[Hg]", [80.0, 220.0])
    card = (package.folder / "model_card.md").read_text()
    for words in ("study-1", "permit-1", "0.765", "1,234", "Not intended", "systolic_bp"):
        assert words in card
    assert "| AUC | 0.765 | 0.710 to 0.820 |" in card
    assert "| sensitivity at threshold 0.5 | says nothing | 0.000 to 1.000 |" in card
    assert "0.275" not in card


def test_a_release_is_shown_with_its_figures_and_their_intervals(package: Sealed) -> None:
    code, envelope = exit_and_envelope("component", "show", package.folder)
    assert (code, envelope["data"]["digest"]) == (0, component_digest(COMPONENT))
    figures = envelope["data"]["evaluation"]
    assert (figures["auc"]["low"], figures["auc"]["high"], figures["auc"]["informative"]) == (0.71, 0.82, True)
    assert figures["sensitivity"]["text"] == "says nothing (0.000 to 1.000)"
    assert "evaluation" not in exit_and_envelope("component", "show", COMPONENT)[1]["data"]


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    def apply(folder: Path) -> str:
        (folder / name).write_bytes(how((folder / name).read_bytes()))
        return name

    return apply


def add(name: str) -> Callable[[Path], str]:
    def apply(folder: Path) -> str:
        (folder / name).write_text("more")
        return name

    return apply


def drop(name: str) -> Callable[[Path], str]:
    def apply(folder: Path) -> str:
        (folder / name).unlink()
        return name

    return apply


def link(folder: Path) -> str:
    (folder / "code" / "link.py").symlink_to("/etc/hostname")
    return "code/link.py"


@pytest.mark.parametrize(
    "tamper",
    [
        change("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        change("code/model.py", lambda data: data + b"\n"),
        change("manifest.json", lambda data: data.replace(b'"nodes": 4', b'"nodes": 5')),
        change("manifest.jws", lambda data: data + b"\n"),
        change("privacy_statement.json", lambda data: data.replace(b'"epsilon"', b'"epsilom"', 1)),
        add("patients.csv"),
        add("code/extra.py"),
        drop("model_card.md"),
        drop("manifest.jws"),
        link,
    ],
)
def test_whatever_is_changed_is_named(tamper: Callable[[Path], str], package: Sealed, key: SigningKey) -> None:
    name = tamper(package.folder)
    with pytest.raises(VerificationError) as caught:
        verify_package(package.folder, key.public)
    assert name in caught.value.message


def test_another_key_does_not_verify(package: Sealed) -> None:
    with pytest.raises(VerificationError):
        verify_package(package.folder, SigningKey.generate().public)


@pytest.mark.parametrize("weights", [b"", b"pickle", save({"w": np.array([np.nan], dtype=np.float32)})])
def test_weights_that_are_none_are_refused_before_anything_is_written(
    weights: bytes, tmp_path: Path, key: SigningKey
) -> None:
    with pytest.raises(InputError) as caught:
        write_package(
            tmp_path / "p", COMPONENT, PROFILE, weights=weights, facts=FACTS, statement=STATEMENT, run={}, key=key
        )
    assert caught.value.code == "VHT-INPUT-WEIGHTS"
    assert not (tmp_path / "p").exists()


def test_a_loaded_component_predicts_probabilities_and_takes_missing_values(tmp_path: Path, key: SigningKey) -> None:
    from vht_federate.packaging.load import load_component

    folder = tmp_path / "p"
    write_package(
        folder, COMPONENT, PROFILE, weights=trained_weights(), facts=FACTS, statement=STATEMENT, run={}, key=key
    )
    component = load_component(folder, key.public)
    assert component.inputs == tuple(port.name for port in CONTRACT.inputs(PROFILE))
    values = np.full((2, len(component.inputs)), np.nan, dtype=np.float32)
    values[1, 0] = 61
    risk = component.predict(values)
    assert risk.shape == (2,)
    assert ((risk > 0) & (risk < 1)).all()
    (folder / "code/model.py").write_text("raise SystemExit('ran')")
    with pytest.raises(VerificationError):
        load_component(folder)


# --- privacy statement --------------------------------------------------------------------------------------------


def test_the_shipped_schema_is_the_model_s_and_the_words_carry_the_numbers() -> None:
    import vht_federate.packaging as packaging

    shipped = Path(packaging.__file__).parent / "schemas" / "privacy_statement.schema.json"
    assert json.loads(shipped.read_text()) == statement_schema()
    words = " ".join(plain_words(read_statement(STATEMENT)))
    assert f"epsilon {STATEMENT['epsilon']:.3g}" in words
    assert "each patient at each hospital" in words
    assert "No claim is made that this release is anonymous" in words


def test_a_statement_without_its_numbers_is_refused_naming_the_places() -> None:
    with pytest.raises(InputError, match="delta"):
        read_statement({name: value for name, value in STATEMENT.items() if name != "delta"})


# --- codebook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", sorted(CONTRACT.profiles))
def test_the_codebook_covers_every_port_of_the_profile_from_bound_to_bound(profile: str) -> None:
    book = Codebook.read(codebook_for(CONTRACT, profile))
    assert book.order == CONTRACT.columns(profile)
    assert book.target == CONTRACT.outcome(profile).name
    for name in book.order:
        port, column = CONTRACT.port(name), book.columns[name]
        assert (column.kind, column.unit) == (port.kind, port.unit)
        assert len(column.labels) == column.cells == len(set(column.labels))
        if port.bounds:
            assert column.edges[0] <= port.bounds[0] < port.bounds[1] <= column.edges[-1]
            assert 4 <= column.values <= 12
        absent_means_no = port.source.type in ("condition", "medication") or name == book.target
        assert column.missing is not absent_means_no


def test_a_codebook_survives_json_in_any_key_order_and_refuses_what_it_does_not_know() -> None:
    raw = codebook_for(CONTRACT, PROFILE)
    assert Codebook.read(json.loads(json.dumps(raw, sort_keys=True))) == Codebook.read(raw)
    for broken in ({**raw, "more": 1}, {**raw, "target": "age"}, {**raw, "order": raw["order"][1:]}, {}):
        with pytest.raises(InputError):
            Codebook.read(broken)


@pytest.mark.parametrize("layout", [{"layout": "repeated"}, {"layout": "sequence", "window_days": 30}])
def test_records_with_steps_have_no_codebook(layout: dict[str, Any]) -> None:
    chosen = Profile.model_validate(CONTRACT.profile(PROFILE).model_dump() | layout | {"steps": 3})
    with pytest.raises(InputError) as caught:
        codebook_for(CONTRACT.model_copy(update={"profiles": {PROFILE: chosen}}), PROFILE)
    assert caught.value.code == "VHT-INPUT-LAYOUT"


def test_what_a_node_says_of_its_engine_is_kept_where_it_makes_sense() -> None:
    replies = {
        "fast": Reply({"engine": "book-keeping", "engine_why": ""}),
        "slow": Reply({"engine": "torch.func", "engine_why": "records of a batch are mixed"}),
        "silent": Reply({"steps": 3}),
        "odd": Reply({"engine": "<b>", "engine_why": 7}),
        "long": Reply({"engine": "torch.func", "engine_why": "x" * 1000}),
    }
    assert reported_gradient_engines(replies) == {
        "fast": {"engine": "book-keeping", "why": ""},
        "slow": {"engine": "torch.func", "why": "records of a batch are mixed"},
    }
