"""Made-up outputs of nodes with real arithmetic: what a coordinator makes of them can be made again."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from vht_federate.domain.plan import StudyPlan
from vht_federate.evidence.output_check import cohort_tables
from vht_federate.framing import Call, Reply
from vht_federate.packaging.evaluation import summarise
from vht_federate.secagg.aggregate import next_weights, read_weights
from vht_federate.signing.canonical import sha256_hex

__all__ = ["MadeUpOutputs"]


@dataclass
class MadeUpOutputs:
    """The calls of one study. ``weights`` are the global ones of the moment."""

    plan: StudyPlan
    weights: bytes = field(default_factory=lambda: save({"weight": np.zeros(3, dtype=np.float32)}))
    patients_noised: dict[str, float] = field(default_factory=dict)
    replies: dict[tuple[str, int], dict[str, Reply]] = field(default_factory=dict)
    spoilt: set[tuple[str, str, int]] = field(default_factory=set)  # (node, job, round) of useless tensors

    def request(self, visit: str, job: str, number: int) -> str:
        """Digest of the call as a node logs it."""
        return Call(visit, job, number, tensors=b"" if job == "marginals" else self.weights).sha256()

    def answer(self, name: str, job: str, number: int) -> str:
        """One node's output, the same for the same call; its digest."""
        rng = np.random.default_rng(list(hashlib.sha256(f"{name}|{job}|{number}".encode()).digest()))
        reply = {"train": self._train, "evaluate": self._evaluate, "marginals": self._marginals}[job](rng, number)
        if (name, job, number) in self.spoilt:
            reply = Reply(reply.result, b"no tensors")
        self.replies.setdefault((job, number), {})[name] = reply
        return reply.sha256()

    def combine(self, number: int, names: list[str]) -> None:
        """The end of a training round that ``names`` answered."""
        replies, like = self.replies["train", number], load(self.weights)
        names = [name for name in names if (name, "train", number) not in self.spoilt]
        self.patients_noised |= {name: float(replies[name].result["patients_noised"]) for name in names}
        updates = {name: read_weights(replies[name].tensors, like) for name in names}
        self.weights = next_weights(self.plan.trust_model, updates, self.patients_noised)

    def evaluation(self) -> dict[str, Any]:
        tables = {name: reply.result for name, reply in self.replies.get(("evaluate", 1), {}).items()}
        return summarise(tables, self.plan.evaluation.noise_multiplier if self.plan.evaluation else 1.0)

    def of(self, rounds: list[dict[str, Any]]) -> dict[str, dict[str, Reply]]:
        """Those that ``rounds`` of a run name, by phase and node."""
        return {
            f"{phase['job']}-{phase['round']}": {
                name: self.replies[phase["job"], phase["round"]][name] for name in phase["outputs"]
            }
            for phase in rounds
        }

    def tables(self) -> bytes:
        """The sums behind a cohort."""
        return save(cohort_tables(self.replies["marginals", 1], self.replies["marginals", 2]))

    def table_digests(self) -> dict[str, dict[str, str]]:
        return {
            str(number): {name: sha256_hex(reply.tensors) for name, reply in self.replies["marginals", number].items()}
            for number in (1, 2)
        }

    def _train(self, rng: np.random.Generator, number: int) -> Reply:
        del number
        moved = {name: value + rng.normal(size=3).astype(np.float32) for name, value in load(self.weights).items()}
        return Reply(
            {"patients_noised": 100.0 + float(rng.normal()), "steps": 3, "engine": "book-keeping", "engine_why": ""},
            save(moved),
        )

    @staticmethod
    def _evaluate(rng: np.random.Generator, number: int) -> Reply:
        del number
        cells: dict[str, list[int]] = {"confusion": [40, 10, 5, 45], "positives": [5, 45], "negatives": [40, 10]}
        return Reply(
            {name: (np.array(values) + rng.normal(size=len(values))).tolist() for name, values in cells.items()}
        )

    @staticmethod
    def _marginals(rng: np.random.Generator, number: int) -> Reply:
        first: dict[str, tuple[int, ...]] = {"one-way/age": (11,), "one-way/male": (2,), "sketch/age|male": (3, 2)}
        shapes = first if number == 1 else {"pair/age|male": (11, 2)}
        tables = {name: rng.normal(10, 3, shape).astype(np.float32) for name, shape in shapes.items()}
        return Reply({"tables": len(tables)}, save(tables))
