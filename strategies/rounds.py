"""The rounds of one run: train, evaluate, count marginals; a checkpoint after each; it can go on after a crash.

A call that was already answered may be asked again: an enclave answers an exact retry from its own record, without
new noise, so a resumed run costs no second budget.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any, Protocol

from safetensors.numpy import load

from strategies.message_content import Answer
from strategies.run_state import Dispatch, RoundState, RunDirectory, RunState
from vht_federate.errors import CohortError, InputError, RevokedError, VhtError, WireError
from vht_federate.framing import Call, Reply
from vht_federate.packaging.evaluation import summarise
from vht_federate.secagg.aggregate import Weights, next_weights, read_weights
from vht_federate.text import counted

__all__ = ["Asker", "PairChooser", "Rounds", "Stopped", "pair_chooser"]

PairChooser = Callable[[dict[str, object], Mapping[str, bytes]], list[list[str]]]


class Asker(Protocol):
    """One phase: calls per node out, answers per node in (``phase.Exchange``)."""

    def ask(self, calls: Mapping[str, Sequence[Call]], phase: str) -> dict[str, list[Answer]]: ...


class Stopped(Exception):
    """The coordinator asked this run to stop."""


def pair_chooser() -> PairChooser:
    """The installed chooser of two-way tables. Raises InputError VHT-INPUT-CHOOSER where there is none."""
    for point in entry_points(group="vht.pair_choosers"):
        chooser: PairChooser = point.load()
        return chooser
    raise InputError(
        "no chooser of two-way tables is installed", code="VHT-INPUT-CHOOSER", hint="pip install 'vht-federate[synth]'"
    )


@dataclass
class Rounds:
    """Plays ``dispatch`` on the run in ``directory``. All that it learns is written before the next message."""

    directory: RunDirectory
    dispatch: Dispatch
    state: RunState
    asker: Asker
    clock: Callable[[], datetime]
    choose_pairs: Callable[[], PairChooser] = pair_chooser

    def play(self) -> RunState:
        """Run to the end. The state tells how it ended; nothing is raised for a refusal or a revocation."""
        self.state.end("running")
        self._save()
        try:
            self._train()
            self._after_training()
            self.state.end("completed", reason=self._who_took_part())
        except RevokedError as error:
            self.state.end("revoked", error)
        except CohortError as error:
            self.state.end("refused", error)
        except Stopped:
            self.state.end("stopped", reason="stopped by the coordinator")
        except VhtError as error:
            self.state.end("failed", error)
        self._save()
        return self.state

    def _train(self) -> None:
        done_rounds = {phase.round for phase in self.state.rounds if phase.job == "train"}
        for number in range(1, self.dispatch.plan.training.rounds + 1):
            if number in done_rounds:
                continue
            weights = self.directory.weights(number - 1)
            calls = {name: [self._call(name, "train", number, weights)] for name in self.state.taking_part()}
            replies, finished = self._exchange(calls)
            usable = self._usable(replies, load(weights))
            if self._enough():
                trust_model = self.dispatch.plan.trust_model
                self.directory.write_weights(number, next_weights(trust_model, usable, self.state.patients_noised))
            self._record(finished)

    def _usable(self, replies: Mapping[str, list[Reply]], like: Weights) -> dict[str, Weights]:
        """Updates by node; a node whose update is none of this component's is lost."""
        usable = {}
        for name, (reply,) in replies.items():
            try:
                weights = read_weights(reply.tensors, like)
                self.state.patients_noised[name] = float(reply.result["patients_noised"])
            except (VhtError, KeyError, TypeError, ValueError):
                self.state.lose(name, WireError("its update cannot be used", code="VHT-WIRE-WEIGHTS"))
                continue
            usable[name] = weights
        return usable

    def _after_training(self) -> None:
        """Evaluation and the first marginals in one message, then the second marginals."""
        plan, directory = self.dispatch.plan, self.directory
        weights = directory.weights(plan.training.rounds)
        first = [job for job, job_plan in (("evaluate", plan.evaluation), ("marginals", plan.cohort)) if job_plan]
        done_calls = {(phase.job, phase.round) for phase in self.state.rounds}
        if first and (first[-1], 1) not in done_calls:
            tensors = {"evaluate": weights, "marginals": b""}
            names = self.state.taking_part()
            calls = {name: [self._call(name, job, 1, tensors[job]) for job in first] for name in names}
            self._record(self._exchange(calls)[1])
        if plan.evaluation:
            tables = {name: reply.result for name, reply in directory.recorded(self.state, "evaluate", 1).items()}
            self.state.evaluation = summarise(tables, plan.evaluation.noise_multiplier)
        if plan.cohort and ("marginals", 2) not in done_calls:
            first_tables = directory.recorded(self.state, "marginals", 1)
            one_way = {name: reply.tensors for name, reply in first_tables.items()}
            params: dict[str, Any] = {"pairs": self.choose_pairs()(dict(self.dispatch.codebook or {}), one_way)}
            calls = {name: [self._call(name, "marginals", 2, b"", params)] for name in self.state.taking_part()}
            self._record(self._exchange(calls)[1])

    def _call(self, name: str, job: str, round_: int, tensors: bytes, params: dict[str, Any] | None = None) -> Call:
        return Call(self.state.nodes[name].visit, job, round_, params or {}, tensors)

    def _exchange(self, calls: Mapping[str, Sequence[Call]]) -> tuple[dict[str, list[Reply]], list[RoundState]]:
        """Ask, and keep all that came: replies of the nodes that answered everything, and the phase for the record.

        Raises RevokedError where a node saw the permit revoked, Stopped; what had left the nodes is recorded first.
        """
        if self.directory.stop_requested():
            raise Stopped
        phase_calls = next(iter(calls.values()), [])
        started = time.monotonic()
        answers = self.asker.ask(calls, "+".join(f"{call.job}-{call.round}" for call in phase_calls))
        seconds, now = round(time.monotonic() - started, 3), self.clock()
        finished = [
            RoundState(job=call.job, round=call.round, outputs={}, seconds=seconds, finished_at=now)
            for call in phase_calls
        ]
        replies = {
            name: self._keep(name, calls[name], node_answers, finished) for name, node_answers in answers.items()
        }
        revoked = [
            answer.error
            for node_answers in answers.values()
            for answer in node_answers
            if isinstance(answer.error, RevokedError)
        ]
        if revoked or self.directory.stop_requested():
            self.state.rounds += finished
            self._save()
            raise revoked[0] if revoked else Stopped
        return {
            name: node_replies for name, node_replies in replies.items() if self.state.nodes[name].lost is None
        }, finished

    def _keep(
        self, name: str, calls: Sequence[Call], answers: Sequence[Answer], finished: Sequence[RoundState]
    ) -> list[Reply]:
        """What left a node is on record, whatever becomes of the round."""
        replies = []
        for call, answer, phase in zip(calls, answers, finished, strict=True):
            if answer.reply is None:
                self.state.lose(name, answer.error or VhtError("no answer"))
                continue
            self.directory.write_output(call.job, call.round, name, answer.reply)
            phase.outputs[name] = answer.sha256
            self.state.nodes[name].rounds.append(f"{call.job}-{call.round}")
            replies.append(answer.reply)
        return replies

    def _record(self, finished: Sequence[RoundState]) -> None:
        """Checkpoint a phase. Raises CohortError VHT-COHORT-NODES where fewer nodes than the minimum are left."""
        self.state.rounds += finished
        self._save()
        if not self._enough():
            raise self.state.too_few(self.dispatch.minimum_nodes)

    def _enough(self) -> bool:
        return len(self.state.taking_part()) >= self.dispatch.minimum_nodes

    def _who_took_part(self) -> str:
        lost = [name for name, node in self.state.nodes.items() if node.lost]
        total = len(self.state.nodes)
        words = f"{total - len(lost)} of {counted(total, 'node')} took part to the end"
        return f"{words}; lost: {', '.join(lost)}" if lost else words

    def _save(self) -> None:
        self.directory.write_state(self.state)
