"""What privacy costs per training step: ours beside plain SGD and beside the best Opacus mode, in the same process.

One thread. A step is the gradient, the noise and the update. Noise is drawn in float32 here, as a plan may choose; the
default of a plan is float64, which has a row. Kinds of step are interleaved and the median of process
CPU time is compared, so that a busy machine disturbs all of them alike. One record a patient, because Opacus knows no
patients; a row of its own has patients with several.
"""

import logging
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.table import Row
from vht_federate.privacy.discrete import discrete_gaussian, skellam
from vht_federate.privacy.engine import Batch, PerPatientEngine, noised_sum
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private

Step = Callable[[], None]
RATE, CLIPPING_NORM, NOISE_MULTIPLIER = 0.01, 1.0, 1.0
GOALS = {"mlp": 1.35, "gru": 1.15, "lstm": 2.0, "cnn": 1.4, "transformer": 1.4}
ROUNDS = {"mlp": 300}
FEW_ROUNDS, OPACUS_ROUNDS = 25, 7


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers, self.head = kind(64, 64, 2, batch_first=True), nn.Linear(64, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.layers(values)[0][:, -1]).squeeze(-1)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.layers(values).mean(1)).squeeze(-1)


def convolutional() -> nn.Module:
    """Twelve leads of 1,000 samples, as of an electrocardiogram."""
    return nn.Sequential(
        nn.Conv1d(12, 32, 7, padding=3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(64, 1),
        nn.Flatten(0),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1), nn.Flatten(0)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (perceptron, (256, 64)),
    "gru": (lambda: Recurrent(nn.GRU), (128, 48, 64)),
    "lstm": (lambda: Recurrent(nn.LSTM), (128, 48, 64)),
    "cnn": (convolutional, (128, 12, 1000)),
    "transformer": (Transformer, (128, 48, 64)),
}
loss = F.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Task:
    """A model and one batch; ``each`` records belong to a patient."""

    name: str
    values: Tensor
    outcome: Tensor
    each: int = 1

    @classmethod
    def of(cls, name: str, each: int = 1) -> "Task":
        generator = torch.Generator().manual_seed(5)
        values = torch.randn(MODELS[name][1], generator=generator)
        return cls(name, values, (torch.rand(len(values), generator=generator) < 0.5).float(), each)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return MODELS[self.name][0]()

    def plain(self) -> Step:
        model = self.model()
        optimizer = torch.optim.SGD(model.parameters(), RATE)

        def step() -> None:
            optimizer.zero_grad()
            loss(model(self.values), self.outcome).backward()
            optimizer.step()

        return step

    def ours(self) -> Step:
        model, noise = self.model(), SecureNoise()
        engine, parameters = PerPatientEngine(model, loss), dict(model.named_parameters())
        patients = len(self.values) // self.each
        patient = torch.arange(len(self.values)) // self.each
        batch = Private(Batch((self.values,), self.outcome, patient, patients))

        def step() -> None:
            noised = noised_sum(engine, batch, CLIPPING_NORM, NOISE_MULTIPLIER, noise, "float32")
            with torch.no_grad():
                torch._foreach_add_(list(parameters.values()), list(noised.values()), alpha=-RATE / patients)

        return step

    def opacus(self, mode: str) -> Step:
        """One of Opacus' ways: hooks, functorch, ghost (fast gradient clipping). Its own noise is not secure."""
        from opacus import optimizers
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
        from opacus.validators import ModuleValidator

        model = ModuleValidator.fix(self.model())
        settings = {
            "noise_multiplier": NOISE_MULTIPLIER,
            "max_grad_norm": CLIPPING_NORM,
            "expected_batch_size": len(self.values),
        }
        if mode == "ghost":
            wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIPPING_NORM, use_ghost_clipping=True)
            plain = torch.optim.SGD(wrapped.parameters(), RATE)
            optimizer = optimizers.DPOptimizerFastGradientClipping(plain, **settings)
            criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.BCEWithLogitsLoss())
        else:
            wrapped = GradSampleModule(model, force_functorch=mode == "functorch")
            optimizer = optimizers.DPOptimizer(torch.optim.SGD(wrapped.parameters(), RATE), **settings)
            criterion = loss

        def step() -> None:
            optimizer.zero_grad()
            criterion(wrapped(self.values), self.outcome).backward()
            optimizer.step()

        return step


def medians(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Milliseconds of process CPU time of each step, median over rounds in which each runs once."""
    for step in steps.values():
        step()
        step()
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.process_time_ns()
            step()
            spent[name].append((time.process_time_ns() - began) / 1e6)
    return {name: statistics.median(times) for name, times in spent.items()}


def peak_bytes(task: Task, step: Step) -> int:
    """Most memory alive at one time in a step: torch's own peak, or the sum and what numpy holds for its noise.

    The two do not add up: activations are gone when noise is drawn.
    """
    for _ in range(2):
        step()
    weights = sum(value.numel() * value.element_size() for value in task.model().parameters())
    tracemalloc.start()
    step()
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    alive = peak = 0
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    resident = weights + task.values.numel() * task.values.element_size()
    return resident + max(peak, weights + of_numpy)


def available(task: Task) -> dict[str, Step]:
    """Opacus' modes that run this model at all."""
    modes = {}
    for mode in ("hooks", "functorch", "ghost"):
        try:
            step = task.opacus(mode)
            step()
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):
            continue
        modes[mode] = step
    return modes


def measure() -> list[Row]:
    with quietly():
        return [*steps(), *memory(), *noise_share(), *several_records()]


def steps() -> Iterator[Row]:
    worst = (0.0, "")
    for name, goal in GOALS.items():
        task = Task.of(name)
        times_ms = medians({"plain": task.plain(), "ours": task.ours()}, ROUNDS.get(name, FEW_ROUNDS))
        ratio = times_ms["ours"] / times_ms["plain"]
        yield Row(f"{name}_vs_sgd", ratio, "x", f"<= {goal}", ratio <= goal, f"SGD, {times_ms['plain']:.2f} ms")
        rivals = medians({"ours": task.ours(), **available(task)}, OPACUS_ROUNDS)
        own = rivals.pop("ours")
        best = min(rivals, key=lambda mode: rivals[mode])
        yield Row(f"{name}_vs_opacus", own / rivals[best], "x", "no goal", True, f"{best}, {rivals[best]:.1f} ms")
        worst = max(worst, (own / rivals[best], name))
    yield Row("worst_vs_best_opacus", worst[0], "x", "<= 1.0", worst[0] <= 1.0, worst[1])


def memory() -> Iterator[Row]:
    worst = (0.0, "")
    for name in MODELS:
        task = Task.of(name)
        plain, ours = (peak_bytes(task, step) for step in (task.plain(), task.ours()))
        worst = max(worst, (ours / plain, name))
    yield Row("peak_memory_vs_sgd", worst[0], "x", "<= 1.5", worst[0] <= 1.5, worst[1])


def noise_share() -> Iterator[Row]:
    task, noise = Task.of("mlp"), SecureNoise()
    count = sum(value.numel() for value in task.model().parameters())
    kinds: dict[str, Step] = {
        "step": task.ours(),
        "float32": lambda: discard(noise.gaussian_float32((count,))),
        "float64": lambda: discard(noise.gaussian((count,))),
        "torch": lambda: discard(torch.randn(count)),
    }
    times_ms = medians(kinds, ROUNDS["mlp"])
    share = times_ms["float32"] / times_ms["step"]
    yield Row("secure_noise_share", share, "of the step", "<= 0.10", share <= 0.1, f"step, {times_ms['step']:.2f} ms")
    for kind in ("float64", "torch"):
        yield Row(f"noise_share_{kind}", times_ms[kind] / times_ms["step"], "of the step", "no goal", True)
    yield from discrete(count, noise, times_ms["step"])


def discrete(count: int, noise: SecureNoise, step: float) -> Iterator[Row]:
    """Exact noise on the integer grid: drawn once for a secure sum, not once a step."""
    variance = Fraction(1 << 20)  # a step of the grid is a thousandth of the noise
    kinds: dict[str, Step] = {
        "discrete_gaussian": lambda: discard(discrete_gaussian(variance, (count,), noise)),
        "skellam": lambda: discard(skellam(variance, (count,), noise)),
    }
    for kind, spent in medians(kinds, OPACUS_ROUNDS).items():
        yield Row(
            f"{kind}_per_secure_sum", spent / step, "steps", "no goal", True, f"{count:,} numbers, {spent:.0f} ms"
        )


def several_records() -> Iterator[Row]:
    for name in ("mlp", "gru"):
        task = Task.of(name, each=8)
        times_ms = medians({"plain": task.plain(), "ours": task.ours()}, ROUNDS.get(name, FEW_ROUNDS) // 2)
        ratio = times_ms["ours"] / times_ms["plain"]
        yield Row(f"{name}_8_records_a_patient_vs_sgd", ratio, "x", "no goal", True, f"SGD, {times_ms['plain']:.2f} ms")


def discard(_: object) -> None:
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """One thread, and no advice from libraries under comparison."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)
