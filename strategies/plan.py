"""From a study file to the signed request: noise calibrated from epsilon, everything named by digest."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vht_federate.components.contract import Component, read_component
from vht_federate.components.digest import ComponentFiles, component_digest
from vht_federate.components.registry import find_component
from vht_federate.domain.permit import Permit
from vht_federate.domain.plan import BatchLimit, CohortPlan, EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.domain.study import (
    STUDY_TYP,
    ComponentRef,
    PrivacyTargets,
    StudyFile,
    StudyRequest,
    TrainingChoices,
)
from vht_federate.errors import BudgetError, CohortError, InputError
from vht_federate.packaging.codebook import codebook_for
from vht_federate.permits.check import check_request, check_time
from vht_federate.privacy.accounting import calibrate_gaussian, calibrate_training, epsilon_by_population
from vht_federate.privacy.truncation import TruncatedPoisson, overflow_chance
from vht_federate.signing.keys import PublicKey, SigningKey, unverified_claims

__all__ = ["PlannedStudy", "check_locally", "initial_weights", "plan_study", "resolve_plan"]


@dataclass(frozen=True)
class PlannedStudy:
    """A study ready to be asked for. ``permit`` is what its token claims: the nodes judge its signature."""

    file: StudyFile
    request: StudyRequest
    permit: Permit
    permit_token: str
    user_key: SigningKey
    component_dir: Path
    component: Component
    minimum_nodes: int
    epsilon: dict[str, float]  # by population, if all of the plan is spent

    @property
    def token(self) -> str:
        """The request, signed by the data user."""
        return self.user_key.sign(self.request.claims(), typ=STUDY_TYP)

    def at(self, created_at: datetime) -> "PlannedStudy":
        return replace(self, request=self.request.model_copy(update={"created_at": created_at}))


def resolve_plan(privacy: PrivacyTargets, training: TrainingChoices) -> StudyPlan:
    """Calibrate every noise multiplier so that no patient pays more than ``privacy.epsilon``.

    Three releases share ``cohort_epsilon``, two share ``evaluation_epsilon`` (test patients); training, on training
    patients, gets what the marginals and the noised count leave. A ``largest_population`` bounds batches where they
    hardly ever overflow. Raises BudgetError VHT-BUDGET-INFEASIBLE.
    """
    cohort = evaluation = None
    if privacy.cohort_epsilon is not None:
        noise = calibrate_gaussian(privacy.cohort_epsilon, privacy.delta, releases=3)
        cohort = CohortPlan(
            one_way_noise_multiplier=noise, sketch_noise_multiplier=noise, two_way_noise_multiplier=noise
        )
    if privacy.evaluation_epsilon is not None:
        if privacy.evaluation_epsilon > privacy.epsilon:
            raise BudgetError("evaluation_epsilon is above epsilon", code="VHT-BUDGET-INFEASIBLE")
        noise = calibrate_gaussian(privacy.evaluation_epsilon, privacy.delta, releases=2)
        evaluation = EvaluationPlan(noise_multiplier=noise)
    draft = StudyPlan(
        delta=privacy.delta,
        training=TrainingPlan(
            **training.model_dump(exclude={"largest_population"}),
            noise_multiplier=1.0,
            batch_limit=_batch_limit(training),
        ),
        evaluation=evaluation,
        cohort=cohort,
    )
    paid = [event for event in draft.events() if event.population != "test"]
    fixed, private = ([event for event in paid if (event.label == "train") == train] for train in (False, True))
    steps = training.rounds * training.local_steps
    chance = overflow_chance(private)
    noise = calibrate_training(fixed, training.sampling_rate, steps, privacy.epsilon, privacy.delta, chance)
    return draft.model_copy(update={"training": draft.training.model_copy(update={"noise_multiplier": noise})})


def _batch_limit(training: TrainingChoices) -> BatchLimit | None:
    population = training.largest_population
    if population is None:
        return None
    steps = training.rounds * training.local_steps
    fitting = TruncatedPoisson.fitting(training.sampling_rate, population, steps)
    return BatchLimit(patients=fitting.batch, population=population)


def plan_study(file: StudyFile, now: datetime) -> PlannedStudy:
    """Resolve ``file`` and check it against its permit before any node is bothered.

    Raises PermitError, BudgetError or InputError, as the nodes would; the nodes' own judgement is what counts.
    """
    try:
        permit_token = file.study.permit.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the permit {file.study.permit.name}", code="VHT-INPUT-PERMIT") from error
    permit = Permit.from_claims(unverified_claims(permit_token))
    user_key = SigningKey.read(file.study.user_key)
    folder = file.component.path or find_component(file.component.name).folder
    component = read_component(folder)
    plan = resolve_plan(file.privacy, file.training)
    request = StudyRequest(
        study_id=file.study.id,
        title=file.study.title,
        created_at=now,
        permit_id=permit.permit_id,
        user_kid=user_key.public.kid,
        purpose=file.study.purpose,
        categories=file.study.categories,
        dataset_ids=tuple(node.dataset for node in file.nodes),
        component=ComponentRef(
            name=component.name,
            version=component.version,
            digest=component_digest(folder),
            profile=file.component.profile,
        ),
        columns=component.columns(file.component.profile),
        plan=plan,
        codebook=codebook_for(component, file.component.profile) if plan.cohort else None,
        coordinator_key=_coordinator_key(file.federation.coordinator),
    )
    minimum = max(permit.minimum_nodes, file.federation.minimum_nodes or 1)
    epsilon = epsilon_by_population(plan.events(), plan.delta)
    return PlannedStudy(file, request, permit, permit_token, user_key, folder, component, minimum, epsilon)


def _coordinator_key(state: Path) -> dict[str, str] | None:
    """Of the coordinator that will present the study; None before it is made: a study can be planned without one."""
    public = state / "coordinator.pub.json"
    return PublicKey.read(public).jwk() if public.exists() else None


def check_locally(planned: PlannedStudy, now: datetime) -> None:
    """What every node would refuse is refused here first, with the same code."""
    check_time(planned.permit, now)
    check_request(planned.permit, planned.request)
    if len(planned.file.nodes) < planned.minimum_nodes:
        raise CohortError(
            f"the study names {len(planned.file.nodes)} nodes, the permit asks for {planned.minimum_nodes}",
            code="VHT-COHORT-NODES",
        )


def initial_weights(planned: PlannedStudy) -> bytes:
    """Safetensors bytes of the component's weights before training. Loads torch.

    Raises ComponentError VHT-COMPONENT-DIGEST where the files changed since the study was planned.
    """
    from safetensors.numpy import save

    from vht_federate.components.loader import build_model

    files = ComponentFiles.read(planned.component_dir)
    files.expect(planned.request.component.digest)
    state = build_model(files, planned.request.component.profile).state_dict()
    return save({name: tensor.detach().cpu().numpy() for name, tensor in sorted(state.items())})
