"""Each rule of a permit, with the request that breaks exactly that rule."""

from datetime import timedelta
from typing import Any

import jwt
import pytest

from vht_federate.domain.permit import PERMIT_TYP, STATUS_TYP, Permit, StatusList
from vht_federate.domain.study import STUDY_TYP, StudyRequest
from vht_federate.errors import VhtError
from vht_federate.permits.check import check_request, check_status, check_time, read_permit, read_study
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock

CLOCK = FixedClock()
ISSUER, USER, STRANGER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
DIGEST = "ab" * 32


def permit(**changes: Any) -> Permit:
    fields: dict[str, Any] = {
        "permit_id": "permit-1",
        "hdab": "HDAB",
        "application_ref": "a-1",
        "issued_at": CLOCK.now,
        "not_before": CLOCK.now,
        "expires_at": CLOCK.now + timedelta(days=10),
        "categories": ["51.1.a"],
        "dataset_ids": ["urn:d:1", "urn:d:2"],
        "columns": ["age", "cvd_10y"],
        "purposes": ["53.1.e.ii"],
        "purpose_text": "x",
        "controller": "c",
        "data_users": [{"name": "u", "kind": "private", "kid": USER.public.kid}],
        "component_digests": [DIGEST],
        "epsilon": 3.0,
        "delta": 1e-5,
        "minimum_nodes": 2,
    }
    return Permit.model_validate({**fields, **changes})


def request(**changes: Any) -> StudyRequest:
    training = {
        "rounds": 2, "local_steps": 3, "sampling_rate": 0.5, "clipping_norm": 1, "noise_multiplier": 5.0,
        "learning_rate": 0.1,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "study_id": "s-1",
        "title": "t",
        "created_at": CLOCK.now,
        "permit_id": "permit-1",
        "user_kid": USER.public.kid,
        "purpose": "53.1.e.ii",
        "categories": ["51.1.a"],
        "dataset_ids": ["urn:d:1"],
        "component": {"name": "c", "version": "1", "digest": DIGEST, "profile": "p"},
        "columns": ["age"],
        "plan": {"delta": 1e-5, "training": training},
    }
    return StudyRequest.model_validate({**fields, **changes})


def refusal(action: Any) -> str:
    with pytest.raises(VhtError) as caught:
        action()
    return caught.value.code


def test_a_permit_survives_signing_and_reading() -> None:
    token = ISSUER.sign(permit().claims(), typ=PERMIT_TYP)
    assert read_permit(token, ISSUER.public) == permit()


@pytest.mark.parametrize("typ", [STATUS_TYP, STUDY_TYP, "JWT"])
def test_a_statement_of_another_type_is_no_permit(typ: str) -> None:
    token = ISSUER.sign(permit().claims(), typ=typ)
    assert refusal(lambda: read_permit(token, ISSUER.public)) == "VHT-PERMIT-SIGNATURE"


def test_a_permit_of_another_issuer_is_refused() -> None:
    token = STRANGER.sign(permit().claims(), typ=PERMIT_TYP)
    assert refusal(lambda: read_permit(token, ISSUER.public)) == "VHT-PERMIT-SIGNATURE"


def test_a_permit_whose_algorithm_is_none_is_refused() -> None:
    token = jwt.encode(permit().claims(), "", algorithm="none", headers={"typ": PERMIT_TYP})
    assert refusal(lambda: read_permit(token, ISSUER.public)) == "VHT-PERMIT-SIGNATURE"


def test_a_signed_permit_with_an_unknown_field_is_malformed() -> None:
    token = ISSUER.sign({**permit().claims(), "surprise": 1}, typ=PERMIT_TYP)
    assert refusal(lambda: read_permit(token, ISSUER.public)) == "VHT-PERMIT-MALFORMED"


def test_a_permit_is_good_from_its_start_until_its_end() -> None:
    good = permit()
    check_time(good, good.not_before)
    check_time(good, good.expires_at - timedelta(seconds=1))
    assert refusal(lambda: check_time(good, good.not_before - timedelta(seconds=1))) == "VHT-PERMIT-NOT-YET"
    assert refusal(lambda: check_time(good, good.expires_at)) == "VHT-PERMIT-EXPIRED"


def status(key: SigningKey = ISSUER, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "hdab": "HDAB",
        "issued_at": CLOCK.now,
        "valid_until": CLOCK.now + timedelta(seconds=60),
        "serial": 4,
        **changes,
    }
    return key.sign(StatusList.model_validate(fields).claims(), typ=STATUS_TYP)


def test_a_fresh_list_without_the_permit_is_good() -> None:
    assert check_status(status(), ISSUER.public, permit(), CLOCK.now).serial == 4
    assert check_status(status(), ISSUER.public, permit(), CLOCK.now + timedelta(seconds=60)).serial == 4


def test_a_stale_an_older_a_forged_and_a_misshapen_list_are_refused() -> None:
    late = CLOCK.now + timedelta(seconds=61)
    assert refusal(lambda: check_status(status(), ISSUER.public, permit(), late)) == "VHT-PERMIT-STATUS-STALE"
    older = status(serial=3)
    code = refusal(lambda: check_status(older, ISSUER.public, permit(), CLOCK.now, minimum_serial=4))
    assert code == "VHT-PERMIT-STATUS-STALE"
    forged = status(STRANGER)
    assert refusal(lambda: check_status(forged, ISSUER.public, permit(), CLOCK.now)) == "VHT-PERMIT-STATUS-SIGNATURE"
    misshapen = ISSUER.sign({"serial": 1}, typ=STATUS_TYP)
    assert refusal(lambda: check_status(misshapen, ISSUER.public, permit(), CLOCK.now)) == "VHT-PERMIT-STATUS-SIGNATURE"
    assert refusal(lambda: check_status("", ISSUER.public, permit(), CLOCK.now)) == "VHT-PERMIT-STATUS-SIGNATURE"


def test_a_revoked_permit_is_refused_even_where_the_issuers_clock_is_ahead() -> None:
    ahead = CLOCK.now + timedelta(seconds=5)
    token = status(issued_at=ahead, valid_until=ahead + timedelta(seconds=60), revoked={"permit-1": ahead})
    assert refusal(lambda: check_status(token, ISSUER.public, permit(), CLOCK.now)) == "VHT-PERMIT-REVOKED"
    other = status(revoked={"permit-2": CLOCK.now})
    check_status(other, ISSUER.public, permit(), CLOCK.now)


def test_a_study_is_read_only_with_the_key_of_a_data_user() -> None:
    token = USER.sign(request().claims(), typ=STUDY_TYP)
    assert read_study(token, permit(), USER.public) == request()
    assert refusal(lambda: read_study(token, permit(), STRANGER.public)) == "VHT-PERMIT-USER"
    forged = STRANGER.sign(request().claims(), typ=STUDY_TYP)
    assert refusal(lambda: read_study(forged, permit(), USER.public)) == "VHT-PERMIT-STUDY-SIGNATURE"
    other = USER.sign(request(user_kid=STRANGER.public.kid).claims(), typ=STUDY_TYP)
    assert refusal(lambda: read_study(other, permit(), USER.public)) == "VHT-PERMIT-USER"


def no_cost(_events: Any, _delta: float) -> dict[str, float]:
    return {"train": 0.0, "test": 0.0}


def test_a_request_inside_the_permit_passes_with_the_real_accountant() -> None:
    check_request(permit(), request())


@pytest.mark.parametrize(
    ("changed_permit", "changed_request", "code"),
    [
        ({}, {"permit_id": "permit-2"}, "VHT-PERMIT-MISMATCH"),
        ({}, {"user_kid": STRANGER.public.kid}, "VHT-PERMIT-USER"),
        ({}, {"purpose": "53.1.e.i"}, "VHT-PERMIT-PURPOSE"),
        ({"purposes": ["53.1.a"]}, {"purpose": "53.1.a"}, "VHT-PERMIT-PURPOSE"),  # a private actor
        ({}, {"categories": ["51.1.a", "51.1.f"]}, "VHT-PERMIT-CATEGORY"),
        ({}, {"dataset_ids": ["urn:d:1", "urn:d:3"]}, "VHT-PERMIT-DATASET"),
        ({}, {"columns": ["age", "smoker"]}, "VHT-PERMIT-COLUMN"),
        ({"component_digests": ["cd" * 32]}, {}, "VHT-PERMIT-COMPONENT"),
        ({"release_types": ["cohort", "metrics"]}, {}, "VHT-PERMIT-RELEASE"),
        ({"delta": 1e-6}, {}, "VHT-BUDGET-PERMIT"),
        ({"epsilon": 0.1}, {}, "VHT-BUDGET-PERMIT"),
    ],
)
def test_a_request_outside_the_permit_is_refused_with_the_rules_own_code(
    changed_permit: dict[str, Any], changed_request: dict[str, Any], code: str
) -> None:
    assert refusal(lambda: check_request(permit(**changed_permit), request(**changed_request))) == code


def test_a_public_body_may_rely_on_a_public_purpose() -> None:
    users = [{"name": "u", "kind": "public-body", "kid": USER.public.kid}]
    allowed = permit(purposes=["53.1.a"], data_users=users)
    check_request(allowed, request(purpose="53.1.a"), compose=no_cost)


def test_the_dearer_population_decides_about_the_budget() -> None:
    def dear_tests(_events: Any, _delta: float) -> dict[str, float]:
        return {"train": 1.0, "test": 3.1}

    assert refusal(lambda: check_request(permit(), request(), compose=dear_tests)) == "VHT-BUDGET-PERMIT"
