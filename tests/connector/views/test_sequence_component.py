"""A component of repeated measures, from FHIR lines through the view and the enclave's jobs to a trained model."""

import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, quantity, write

from connector.enclave.cohort import read_cohort
from connector.enclave.jobs import evaluate, train
from connector.fhir import ingest
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.job import JobCall, VisitData
from vht_federate.components.loader import build_model
from vht_federate.domain.plan import EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.testing import SeededNoise

PATIENTS, LANDMARK = 260, date(2010, 1, 1)
CONTRACT = """
schema_version = "1"
name = "pressure-course"
version = "0.1.0"
title = "Hypertension from the course of blood pressure"
description = "Two years of blood pressure in quarters."
license = "Apache-2.0"
entry = "model:build"
output = {{ name = "risk", kind = "probability", unit = "1" }}

[[ports]]
name = "systolic_bp"
title = "Systolic blood pressure"
kind = "quantity"
unit = "mm[Hg]"
loinc = "8480-6"
bounds = [80, 220]
aggregate = "mean"
source = {{ type = "observation", codes = ["8480-6"] }}

[[ports]]
name = "hypertension"
title = "Hypertension within two years"
direction = "outcome"
kind = "boolean"
source = {{ type = "condition", system = "http://snomed.info/sct", codes = ["38341003"] }}

[profiles.course]
title = "Course"
inputs = ["systolic_bp"]
outcome = "hypertension"
landmarks = ["2010-01-01"]
horizon_years = 2
layout = "{layout}"
steps = 8
{window}
"""
MODEL = '''
"""A gated recurrent unit over the windows; what is missing is told by its mask."""

import torch
from torch import nn


class Course(nn.Module):
    def __init__(self, port):
        super().__init__()
        self.low, self.high = port.bounds
        self.read = nn.GRU(3, 6, batch_first=True)
        self.decide = nn.Linear(6, 1)
        generator = torch.Generator().manual_seed(1)  # the same public start everywhere
        for value in self.parameters():
            nn.init.normal_(value, 0.0, 0.4, generator=generator)

    def forward(self, batch):
        values, mask, days = batch.unbind(1)  # [n, steps, 1] each
        scaled = mask * (8 * (values - self.low) / (self.high - self.low) - 3.4)
        _, last = self.read(torch.cat([scaled, mask, mask * days / 730], dim=2))
        return self.decide(last[0]).squeeze(-1)


def build(component, profile):
    return Course(component.inputs(profile)[0])
'''


def charts() -> list[dict[str, Any]]:
    """Pressure rises in half of the patients, and they fall ill; the last values tell nothing."""
    rng, items = random.Random(3), []
    for number in range(PATIENTS):
        rising = rng.random() < 0.5
        items.append(patient(number))
        if rising:
            items.append(condition(f"c{number}", "38341003", "2011-05-05", number))
        last = rng.gauss(140, 6)
        for quarter in range(8):
            if quarter and rng.random() < 0.25:
                continue
            day = LANDMARK - timedelta(days=90 * quarter + rng.randint(2, 80))
            value = round(last + (-5 if rising else 5) * quarter + rng.gauss(0, 2), 1)
            observed = {"effectiveDateTime": day.isoformat(), "valueQuantity": quantity(value, "mm[Hg]")}
            items.append(observation(f"o{number}-{quarter}", number, **observed))
    return items


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("course")
    ingest(write(root / "in", "data.ndjson", charts()), root / "store", node_key=KEY, dataset="d")
    return root / "store"


def component_files(folder: Path, layout: str) -> ComponentFiles:
    folder.mkdir()
    window = "window_days = 91" if layout == "sequence" else ""
    (folder / "component.toml").write_text(CONTRACT.format(layout=layout, window=window))
    (folder / "model.py").write_text(MODEL)
    return ComponentFiles.read(folder)


@pytest.mark.parametrize("layout", ["sequence", "repeated"])
def test_a_component_of_courses_learns_in_the_enclaves_jobs_what_last_values_do_not_tell(
    store: Path, tmp_path: Path, layout: str
) -> None:
    files = component_files(tmp_path / "component", layout)
    component, folder = files.component(), tmp_path / "visits" / "v1" / "cohort"
    manifest = build_cohort(store, CohortSpecification.of_every_column(component, "course"), folder)
    assert manifest.records == PATIENTS
    cohort = read_cohort(folder, component, "course")
    shapes = cohort.map(lambda arrays: (arrays.values.shape, arrays.model_inputs().shape))._open()
    assert shapes == ((PATIENTS, 8, 1), (PATIENTS, 3, 8, 1))
    if layout == "repeated":
        last, outcome = cohort.map(lambda arrays: (arrays.values[:, -1, 0], arrays.outcome))._open()
        assert abs(np.corrcoef(last, outcome)[0, 1]) < 0.4

    plan = StudyPlan(
        delta=1e-5,
        training=TrainingPlan(
            rounds=2, local_steps=25, sampling_rate=0.3, clipping_norm=1.0, noise_multiplier=0.7, learning_rate=0.6
        ),
        evaluation=EvaluationPlan(noise_multiplier=0.5, score_bins=10),
    )
    model = build_model(files, "course")
    start = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    data = VisitData(component, "course", plan, None, cohort, SeededNoise(5), lambda: build_model(files, "course"))
    first = train(data, JobCall("train", 1, tensors=start))
    data.released[("train", 1)] = first.result  # type: ignore[index]
    second = train(data, JobCall("train", 2, tensors=first.tensors))
    before, after = (accuracy(data, weights) for weights in (start, second.tensors))
    assert before < 0.75 < 0.85 < after
    assert second.tensors.keys() == start.keys()


def accuracy(data: VisitData, weights: Any) -> float:
    """Of the released table, noise and all."""
    cells = np.maximum(evaluate(data, JobCall("evaluate", 1, tensors=weights)).result["confusion"], 0)
    return float((cells[0] + cells[3]) / cells.sum())
