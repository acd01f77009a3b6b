"""The jobs ``train`` and ``evaluate``. They run in an enclave; torch is imported when they do."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vht_federate.components.job import CohortArrays, JobCall, JobReply, VisitData
from vht_federate.errors import RefusedError
from vht_federate.privacy.release import Private, release_gaussian
from vht_federate.privacy.scores import PatientScores, ScoreHistogram
from vht_federate.privacy.truncation import check_population
from vht_federate.secagg import protocol_of

if TYPE_CHECKING:
    from torch import nn

    from vht_federate.privacy.engine import PerPatientEngine
    from vht_federate.privacy.training import TrainingTensors

__all__ = ["evaluate", "train"]


def train(data: VisitData, call: JobCall) -> JobReply:
    """One round: the global weights come in, the weights after ``local_steps`` private steps go out.

    Result: ``patients_noised`` (released once, in round 1, and repeated), ``steps``, ``engine`` and ``engine_why``
    (which way gradients were taken, chosen before a patient was read); with adaptive clipping ``clipping_norm``, which
    the next round starts from. Raises RefusedError VHT-REFUSED-SIZE where a plan with bounded batches is not accounted
    for a node of this size.
    """
    from vht_federate.privacy.training import load_weights, noised_count, train_round

    _no_params(call)
    plan, model = data.plan.training, _model(data)
    load_weights(model, call.tensors)
    patients = _patients_noised(data, call.round)
    private_tensors, engine = _training_tensors(data), _engine(data, model)
    private_tensors.map(lambda tensors: engine.prepare((tensors.values,), tensors.outcome))
    if patients is None:
        patients = noised_count(private_tensors, plan, data.noise)
    check_population(plan, patients)
    trained = train_round(engine, private_tensors, patients, plan, data.noise, _clipping_norm(data, call.round))
    result = {
        "patients_noised": patients,
        "steps": plan.local_steps,
        "engine": engine.choice.name,
        "engine_why": engine.choice.why,
    }
    if plan.adaptive_clipping is not None:
        result["clipping_norm"] = trained.clipping_norm
    return JobReply(result, protocol_of(data.plan.trust_model).encode(trained.weights))


def evaluate(data: VisitData, call: JobCall) -> JobReply:
    """Noised tables of the global weights on the test patients.

    Result: ``confusion`` [tn, fp, fn, tp] at threshold 0.5, ``positives`` and ``negatives`` (histograms of the score in
    ``score_bins`` equal bins, by label). A patient's score is the mean over its records, its label the largest of its
    outcomes; a score that is not finite, or that the component fails to give, counts as 0. Each patient adds one to one
    cell of each of the two tables.
    """
    from vht_federate.privacy.training import load_weights

    _no_params(call)
    plan, model = data.plan.evaluation, _model(data)
    if plan is None:
        raise RefusedError("the plan of this study has no evaluation", code="VHT-REFUSED-PLAN")
    load_weights(model, call.tensors)
    data.noise.uniform(0)  # the round begins, and is paid for, before a component sees a patient
    scored = data.cohort.map(lambda cohort: _scores(model, cohort.of("test")))
    confusion = release_gaussian(
        scored.map(lambda pair: _cells(2 * pair[1] + (pair[0] >= 0.5), 4)), 1.0, plan.noise_multiplier, data.noise
    )
    table = ScoreHistogram(plan.noise_multiplier, plan.score_bins).release(
        scored.map(lambda pair: PatientScores(*pair)), data.noise
    )
    return JobReply(
        {
            "confusion": confusion.tolist(),
            "positives": list(table.positives),
            "negatives": list(table.negatives),
        }
    )


def _no_params(call: JobCall) -> None:
    if call.params:
        raise RefusedError(f"{call.job} takes no parameters: the plan says all", code="VHT-REFUSED-CALL")


def _model(data: VisitData) -> "nn.Module":
    """The visit's model, on the device, kept between rounds."""
    if "model" not in data.state:
        import torch

        data.state["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        data.state["model"] = data.build_model().to(data.state["device"])
    model: nn.Module = data.state["model"]
    return model


def _engine(data: VisitData, model: "nn.Module") -> "PerPatientEngine":
    """The visit's gradient engine, kept between rounds."""
    from vht_federate.components.loss import loss_of
    from vht_federate.privacy.engine import EngineOptions, PerPatientEngine

    if "engine" not in data.state:
        options = EngineOptions.of(data.state["device"])
        data.state["engine"] = PerPatientEngine(model, loss_of(data.component), options)
    engine: PerPatientEngine = data.state["engine"]
    return engine


def _training_tensors(data: VisitData) -> "Private[TrainingTensors]":
    """Training patients on the device, kept between rounds."""
    from vht_federate.privacy.training import TrainingTensors

    def tensors(cohort: CohortArrays) -> TrainingTensors:
        chosen = cohort.of("train")
        return TrainingTensors(
            chosen.model_inputs(), chosen.outcome, chosen.patient, chosen.patients, data.state["device"]
        )

    if "training" not in data.state:
        data.state["training"] = data.cohort.map(tensors)
    private_tensors: Private[TrainingTensors] = data.state["training"]
    return private_tensors


def _patients_noised(data: VisitData, round_: int) -> float | None:
    """The count that round 1 released; None in round 1, which releases it."""
    if round_ == 1:
        return None
    first = data.released.get(("train", 1))
    if first is None:
        raise RefusedError("round 1 of the training was not released by this visit", code="VHT-REFUSED-ORDER")
    return float(first["patients_noised"])


def _clipping_norm(data: VisitData, round_: int) -> float | None:
    """Where the latest round that was released left an adaptive norm; None where the plan's holds."""
    earlier = (data.released.get(("train", number)) for number in range(round_ - 1, 0, -1))
    latest = next((result for result in earlier if result is not None), {})
    return float(latest["clipping_norm"]) if "clipping_norm" in latest else None


def _scores(model: Any, cohort: CohortArrays) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(score in 0..1, label 0/1) of each patient with records."""
    import torch

    from vht_federate.privacy.gradients import record_logits

    device = next(model.parameters()).device
    logits = record_logits(model, torch.from_numpy(cohort.model_inputs()).to(device))
    risk = torch.sigmoid(logits).cpu().numpy().astype(np.float64)
    return cohort.mean_by_patient(risk), cohort.labels()


def _cells(cell: NDArray[Any], cells: int) -> NDArray[np.float64]:
    return np.bincount(cell.astype(np.int64), minlength=cells).astype(np.float64)
