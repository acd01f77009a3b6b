import json

import pytest

from vht_federate.domain.plan import CohortPlan, EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.packaging.statement import Gradients, read_statement
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.statement import privacy_statement
from vht_federate.signing.canonical import canonical_bytes

PLAN = StudyPlan(
    delta=1e-5,
    training=TrainingPlan(
        rounds=3, local_steps=4, sampling_rate=0.2, clipping_norm=1, noise_multiplier=2, learning_rate=0.1
    ),
    evaluation=EvaluationPlan(noise_multiplier=5),
    cohort=CohortPlan(one_way_noise_multiplier=8, sketch_noise_multiplier=9, two_way_noise_multiplier=7),
)


def test_epsilon_is_the_worst_node_by_what_truly_ran() -> None:
    ran = {"b": PLAN.events(), "a": PLAN.events_of("train", 1)}
    statement = privacy_statement(PLAN, ran)
    full = epsilon_by_population(PLAN.events(), PLAN.delta)
    assert statement["epsilon"] == max(full.values())
    assert statement["nodes"]["a"]["epsilon"]["train"] < statement["nodes"]["b"]["epsilon"]["train"]
    assert statement["nodes"]["a"]["epsilon"]["test"] == 0.0


@pytest.mark.parametrize("ran", [{}, {"a": ()}])
def test_nothing_that_ran_costs_nothing(ran) -> None:
    assert privacy_statement(PLAN, ran)["epsilon"] == 0.0


def test_the_trust_model_is_said_plainly() -> None:
    text = privacy_statement(PLAN, {})["trust_model"]["text"]
    assert "Every node adds the full noise; the coordinator sees noised updates of each node" in text


def test_it_states_what_the_guideline_asks_and_is_canonical_json() -> None:
    statement = privacy_statement(PLAN, {"a": PLAN.events()})
    for key in ("epsilon", "delta", "unit", "neighbouring_relation", "accountant", "trust_model", "mechanism"):
        assert statement[key]
    assert "Mironov" in json.dumps(statement["limits"])
    assert canonical_bytes(statement) == canonical_bytes(privacy_statement(PLAN, {"a": PLAN.events()}))


def test_it_tells_which_engine_and_noise_ran_in_the_form_that_readers_expect() -> None:
    adaptive = TrainingPlan.model_validate(
        PLAN.training.model_dump() | {"adaptive_clipping": {"quantile": 0.3}, "noise_precision": "float32"}
    )
    engines = {"a": {"engine": "torch.func", "why": "records of a batch are mixed"}}
    for plan in (PLAN, PLAN.model_copy(update={"training": adaptive})):
        statement = privacy_statement(plan, {"a": plan.events(), "b": plan.events()}, engines)
        parsed = read_statement(statement)
        assert parsed.nodes["a"].gradients == Gradients(engine="torch.func", why="records of a batch are mixed")
        assert parsed.nodes["b"].gradients is None
        assert parsed.mechanism.noise.name == plan.training.noise_precision
        assert ("quantile" in parsed.mechanism.clipping) == (plan is not PLAN)
    assert statement["mechanism"]["noise"]["count_noise"] == adaptive.count_noise
    assert statement["epsilon"] == privacy_statement(PLAN, {"a": PLAN.events()})["epsilon"]
