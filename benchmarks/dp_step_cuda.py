"""What privacy costs per training step on a GPU: eager and recorded as a CUDA graph, beside SGD in the same two ways.

A step is the gradient, noise from the secure generator on the host, and the update. Plain SGD has no noise, runs
eagerly, compiled, and as one recorded graph. Kinds of step are interleaved; the median of wall time up to a
synchronised device is compared. ``python -m benchmarks dp-step-cuda``; without a CUDA device it says so and writes
nothing.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.dp_step import CLIPPING_NORM, MODELS, NOISE_MULTIPLIER, RATE, Step, loss, quietly
from benchmarks.table import NotHere, Row
from vht_federate.privacy.engine import EngineOptions, PerPatientEngine, noised_sum
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors

BATCHES = (256, 1024, 4096, 16_384)
GOAL = 1.15
ROUNDS = 30


class Task:
    """One record for each of ``batch`` patients, on ``device``."""

    def __init__(self, name: str, batch: int, device: str) -> None:
        self.name, self.batch, self.device = name, batch, device
        rng = np.random.default_rng(5)
        shape = (batch, *MODELS[name][1][1:])
        outcome = (rng.random(batch) < 0.5).astype(np.float32)
        values = rng.standard_normal(shape, dtype=np.float32)
        self.held = TrainingTensors(values, outcome, np.arange(batch), batch, device)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return MODELS[self.name][0]().to(self.device)

    def plain(self, compiled: bool = False) -> Step:
        model = self.model()
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        forward = torch.compile(model) if compiled else model

        def step() -> None:
            optimizer.zero_grad()
            loss(forward(self.held.values), self.held.outcome).backward()
            optimizer.step()

        return step

    def plain_graphed(self) -> Step:
        """Forward, backward and update as one graph, as torch's documentation records them."""
        model = self.model()
        parameters = list(model.parameters())

        def step() -> None:
            gradients = torch.autograd.grad(loss(model(self.held.values), self.held.outcome), parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, list(gradients), alpha=-RATE)

        return recorded(step) if self.device == "cuda" else step

    def ours(self, options: EngineOptions) -> Step:
        model, noise = self.model(), SecureNoise()
        engine, parameters = PerPatientEngine(model, loss, options), list(model.parameters())
        engine.prepare((self.held.values,), self.held.outcome)
        slots = engine.slots(np.ones(self.batch, dtype=np.int64), self.batch, self.batch, self.device)
        everybody = np.arange(self.batch)

        def step() -> None:
            batch = Private(self.held.batch_of(everybody, slots))
            noised = noised_sum(engine, batch, CLIPPING_NORM, NOISE_MULTIPLIER, noise, "float32")
            with torch.no_grad():
                torch._foreach_add_(parameters, list(noised.values()), alpha=-RATE / self.batch)

        return step


def recorded(step: Step) -> Step:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def medians(steps: dict[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of wall time of each step, median over rounds in which each runs once."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 5):
        for name, step in steps.items():
            synchronise(device)
            began = time.perf_counter_ns()
            step()
            synchronise(device)
            if turn >= 5:
                spent[name].append((time.perf_counter_ns() - began) / 1e6)
    return {name: statistics.median(times) for name, times in spent.items()}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rows(name: str, batch: int, device: str, rounds: int = ROUNDS) -> Iterator[Row]:
    task = Task(name, batch, device)
    graphed, eager = (replace(EngineOptions.of(device), fixed_shapes=fixed) for fixed in ("always", "never"))
    times_ms = medians(
        {
            "sgd": task.plain(),
            "sgd compiled": task.plain(compiled=device == "cuda"),
            "sgd graphed": task.plain_graphed(),
            "eager": task.ours(eager),
            "graphed": task.ours(graphed),
        },
        rounds,
        device,
    )
    for ours, peer, goal in (
        ("eager", "sgd", None),
        ("graphed", "sgd", None),
        ("graphed", "sgd compiled", None),
        ("graphed", "sgd graphed", GOAL),
    ):
        ratio = times_ms[ours] / times_ms[peer]
        words = "no goal" if goal is None else f"<= {goal}"
        metric = f"{name}_{batch}_{ours}_vs_{peer.replace(' ', '_')}"
        yield Row(metric, times_ms[ours], "ms", words, goal is None or ratio <= goal, peer, times_ms[peer])


def measure() -> list[Row]:
    if not torch.cuda.is_available():
        raise NotHere("no CUDA device")
    with quietly():
        return [row for name in MODELS for batch in BATCHES for row in rows(name, batch, "cuda")]
