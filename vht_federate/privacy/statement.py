"""The privacy statement of a release: what NIST SP 800-226 (2025) asks a differential privacy guarantee to state.

Numbers are computed here from the events that truly ran at each node, never copied from a target. All but
``coordinator_says`` follows from the plan, these events and the nodes' outputs (``recomputed_statement``): whoever
holds them computes it again and compares it whole.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan
from vht_federate.privacy.accounting import epsilon_by_population

__all__ = ["SCHEMA", "SCHEMAS", "privacy_statement", "recomputed_statement"]

SCHEMA = "2"
SCHEMAS = ("1", SCHEMA)  # 1: without a part of the coordinator's own words
Compose = Callable[[Sequence[PrivacyEvent], float], Mapping[str, float]]

_TRUST = {
    "full-noise-at-each-node": (
        "Every node adds the full noise; the coordinator sees noised updates of each node. The guarantee holds "
        "against the coordinator, other nodes and anyone who sees the release. Each node trusts its own machine, "
        "operators and installed code."
    )
}
_NEIGHBOURING = {
    "add-or-remove-one-patient": (
        "Two datasets of one node are neighbours when one holds all records of one more patient than the other."
    )
}
_POPULATIONS = (
    "Patients are split by a fixed public rule on Patient.id into train and test. A patient pays for the releases of "
    "its own set and for those on everybody."
)
_LIMITS = (
    "A patient who is in the data of several nodes is protected by each node's guarantee, and their epsilons add up.",
    "Noise is floating-point Gaussian noise: the attack on low-order bits of Mironov (2012) is not excluded by proof.",
    "Clipped contributions are summed in the model's floating-point type: the sensitivity holds up to its rounding.",
    "Running times, memory use and message times are not protected; a side channel of the hardware is out of scope.",
    "Which nodes took part, when, and under which permit is public.",
    "The guarantee bounds what a release reveals of one patient; true facts about a population can still be learned.",
)
_PUBLIC = (
    "component (ports, clinical bounds, code)",
    "plan (rates, steps, clipping norm, noise multipliers)",
    "codebook",
    "split rule",
)

_RANDOMNESS = "AES-128 in counter mode under a key of the operating system; Box-Muller; 53-bit uniforms"
_SAMPLING = "Poisson: in each step each training patient is drawn independently"
_TRUNCATED = (
    "; where more are drawn than a batch holds, a uniformly random part of them is kept, and a hundredth of delta "
    "covers the chance of that (Chua et al. 2024)"
)
_CLIPPING = "L2, once per patient, on the average of the gradients of the patient's records"
_ADAPTIVE = (
    "; the norm follows a quantile of the contributions' norms by a noisy count in each step, and sum and count of a "
    "step together are the one release that is accounted (Andrew et al. 2021, theorem 1)"
)
_NOISE = {
    "float64": "drawn and added in float64; weights leave in float32, without the low-order bits of the noised sum",
    "float32": "drawn and added in float32: the low-order bits of the noised sum can be told from the weights",
}


def privacy_statement(
    plan: StudyPlan,
    ran: Mapping[str, Sequence[PrivacyEvent]],
    gradients: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The statement for a release of ``plan`` for which node ``name`` truly ran ``ran[name]``.

    ``gradients``: by node, ``engine`` and ``why``, where the node told which engine took its gradients.
    ``epsilon`` is the most that any patient at any node paid. JSON values only; the same input gives the same output.
    """
    return recomputed_statement(plan, ran, gradients or {}) | {
        "coordinator_says": {
            "accountant_library": f"dp-accounting {version('dp-accounting')}",
            "randomness": _RANDOMNESS,
        }
    }


def recomputed_statement(
    plan: StudyPlan,
    ran: Mapping[str, Sequence[PrivacyEvent]],
    gradients_by_node: Mapping[str, Mapping[str, str]],
    *,
    schema: str = SCHEMA,
    compose: Compose = epsilon_by_population,
) -> dict[str, Any]:
    """What follows from plan, events and outputs, in the form of ``schema``, one of ``SCHEMAS``."""
    spent = {name: dict(compose(ran[name], plan.delta)) for name in sorted(ran)}
    worst = {
        population: max((node[population] for node in spent.values()), default=0.0) for population in ("train", "test")
    }
    return {
        "schema_version": schema,
        "framework": "NIST SP 800-226",
        "epsilon": max(worst.values()),
        "delta": plan.delta,
        "epsilon_by_population": worst,
        "unit": "patient",
        "neighbouring_relation": {"name": plan.neighbouring, "text": _NEIGHBOURING[plan.neighbouring]},
        "populations": _POPULATIONS,
        "accountant": {
            "method": "privacy loss distributions, pessimistic estimate, all releases of a node composed jointly",
            "name": plan.accountant,
        },
        "trust_model": {"name": plan.trust_model, "text": _TRUST[plan.trust_model]},
        "mechanism": _mechanism(plan),
        "public_information": list(_PUBLIC),
        "limits": list(_LIMITS),
        "nodes": {
            name: {
                "epsilon": spent[name],
                "events": [event.model_dump(mode="json") for event in ran[name]],
                "gradients": dict(gradients_by_node[name]) if name in gradients_by_node else None,
            }
            for name in sorted(ran)
        },
    }


def _mechanism(plan: StudyPlan) -> dict[str, Any]:
    training = plan.training
    return {
        "name": "Gaussian",
        "sampling": _SAMPLING + (_TRUNCATED if training.batch_limit else ""),
        "sampling_rate": training.sampling_rate,
        "batch_limit": training.batch_limit and training.batch_limit.model_dump(mode="json"),
        "clipping": _CLIPPING + (_ADAPTIVE if training.adaptive_clipping else ""),
        "clipping_norm": training.clipping_norm,
        "adaptive_clipping": training.adaptive_clipping and training.adaptive_clipping.model_dump(mode="json"),
        "noise": {
            "name": training.noise_precision,
            "text": _NOISE[training.noise_precision],
            "sum_noise_multiplier": training.sum_noise_multiplier,
            "count_noise": training.count_noise,
        },
        "planned": [event.model_dump(mode="json") for event in plan.events()],
    }
