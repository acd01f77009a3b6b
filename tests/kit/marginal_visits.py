"""A codebook, random cohorts in its terms, and the visit in which the marginals job counts them."""

from typing import Any

import numpy as np

from vht_federate.components.contract import read_component
from vht_federate.components.job import CohortArrays, VisitData
from vht_federate.domain.plan import CohortPlan, StudyPlan, TrainingPlan
from vht_federate.packaging.codebook import Codebook, codebook_for
from vht_federate.privacy.release import Private
from vht_federate.testing.noise import SeededNoise
from vht_federate.testing.rehearsal import COMPONENT

__all__ = ["BOOK", "CONTRACT", "INPUTS", "PROFILE", "RAW", "random_cohort", "visit"]


CONTRACT = read_component(COMPONENT)


PROFILE = "cardiometabolic"


RAW = codebook_for(CONTRACT, PROFILE)


BOOK = Codebook.read(RAW)


INPUTS = len(BOOK.inputs)


def random_cohort(rng: np.random.Generator, patients: int) -> CohortArrays:
    age = rng.normal(60, 12, patients)
    columns = []
    for port in CONTRACT.inputs(PROFILE):
        if port.kind == "boolean":
            columns.append((rng.random(patients) < 0.3).astype(float))
        else:
            low, high = port.bounds or (0, 1)
            columns.append(low + (high - low) * np.clip(0.3 + 0.2 * rng.normal(size=patients), 0, 1))
    values = np.stack(columns, axis=1)
    values[:, 0] = age
    values[:, BOOK.inputs.index("egfr")] = np.clip(150 - age + rng.normal(0, 4, patients), 5, 130)
    outcome = (rng.random(patients) < 1 / (1 + np.exp(-(age - 65) / 5))).astype(np.float32)
    ids = np.arange(patients)
    return CohortArrays(values.astype(np.float32), outcome, ids, np.full(patients, 99, np.uint8))


def visit(cohort: CohortArrays, *, scale: float = 1.0, seed: int = 0, **changes: Any) -> VisitData:
    plan = StudyPlan(
        delta=1e-5,
        training=TrainingPlan(
            rounds=1, local_steps=1, sampling_rate=0.1, clipping_norm=1, noise_multiplier=1, learning_rate=1
        ),
        cohort=CohortPlan(one_way_noise_multiplier=2, sketch_noise_multiplier=3, two_way_noise_multiplier=5),
    )
    fields: dict[str, Any] = {"component": CONTRACT, "profile": PROFILE, "plan": plan, "codebook": RAW}
    fields |= {"cohort": Private(cohort), "noise": SeededNoise(seed, scale=scale), "build_model": lambda: None}
    return VisitData(**{**fields, **changes})
