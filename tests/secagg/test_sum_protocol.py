import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import InputError, WireError
from vht_federate.secagg import protocol_of
from vht_federate.secagg.aggregate import next_weights

PROTOCOL = protocol_of("full-noise-at-each-node")


def weights(*values: float) -> dict[str, np.ndarray]:
    return {"w": np.array(values, dtype=np.float32), "b": np.array([values[0]], dtype=np.float32)}


def test_the_plans_trust_model_has_a_protocol() -> None:
    assert protocol_of(StudyPlan.model_fields["trust_model"].default).trust_model == PROTOCOL.trust_model


def test_an_unknown_trust_model_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        protocol_of("trust me")
    assert caught.value.code == "VHT-INPUT-TRUST-MODEL"


def test_nodes_weigh_as_much_as_their_counts() -> None:
    combined = PROTOCOL.combine({"a": weights(0, 0), "b": weights(4, 8)}, {"a": 300.0, "b": 100.0})
    assert combined["w"].tolist() == [1.0, 2.0]
    assert combined["w"].dtype == np.float32


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_arrival_does_not_change_a_bit(order: list[str]) -> None:
    rng = np.random.default_rng(1)
    updates = {node: {"w": rng.normal(size=9).astype(np.float32)} for node in "abcd"}
    counts = {node: float(rng.uniform(1, 99)) for node in "abcd"}
    expected = PROTOCOL.combine(updates, counts)["w"].tobytes()
    shuffled = PROTOCOL.combine({node: updates[node] for node in order}, {node: counts[node] for node in order})
    assert shuffled["w"].tobytes() == expected


def test_combining_what_was_encoded_by_one_node_gives_it_back() -> None:
    assert PROTOCOL.combine({"a": PROTOCOL.encode(weights(1, 2))}, {"a": 7.0})["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("counts", [{}, {"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": np.nan}, {"a": 1, "c": 1}])
def test_a_missing_or_senseless_count_is_refused(counts: dict[str, float]) -> None:
    with pytest.raises(InputError):
        PROTOCOL.combine({"a": weights(1, 2), "b": weights(1, 2)}, counts)


@pytest.mark.parametrize("odd", [weights(1, 2, 3), {"w": np.zeros(2)}, weights(np.nan, 1), weights(np.inf, 1)])
def test_a_node_that_does_not_fit_is_refused_and_named(odd: dict[str, np.ndarray]) -> None:
    with pytest.raises(WireError, match="b does not fit"):
        PROTOCOL.combine({"a": weights(1, 2), "b": odd}, {"a": 1.0, "b": 1.0})


def test_no_node_is_refused() -> None:
    with pytest.raises(InputError):
        PROTOCOL.combine({}, {})


def test_a_parameter_of_one_number_keeps_its_shape() -> None:
    """A learned scale has no dimension: with one, the next round's nodes would refuse the weights."""
    update = {"scale": np.array(2.0, np.float32), "weight": np.ones((1, 2), np.float32).T}
    combined = load(next_weights("full-noise-at-each-node", {"node-1": update}, {"node-1": 10.0}))
    assert {name: value.shape for name, value in combined.items()} == {"scale": (), "weight": (2, 1)}
    assert combined["scale"] == 2.0
