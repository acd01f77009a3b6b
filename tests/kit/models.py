"""Small models, one for each layer and way of using it; each maps [N, ...] to [N]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDTH = 4


class Pooled(nn.Module):
    """``layer`` on [N, T, WIDTH], then the mean over time of one linear output."""

    def __init__(self, layer: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 1)

    def forward(self, values: Tensor) -> Tensor:
        output = self.layer(values)
        output = output[0] if isinstance(output, tuple) else output
        return self.head(output).mean(1).squeeze(-1)


class Channels(nn.Module):
    """``layer`` on [N, WIDTH, T] (or [N, WIDTH, T, 3]), then the mean over positions."""

    def __init__(self, layer: nn.Module, planes: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.layer, self.planes, self.relu = layer, planes, nn.ReLU(inplace=inplace)
        self.head = nn.LazyLinear(1)

    def forward(self, values: Tensor) -> Tensor:
        image = values.transpose(1, 2)
        if self.planes:
            image = image.unsqueeze(-1) * torch.linspace(-1, 1, 5, dtype=values.dtype, device=values.device)
        return self.head(self.relu(self.layer(image)).flatten(2).mean(2)).squeeze(-1)


class Attending(nn.Module):
    def __init__(self, weights: bool, cross: bool = False, masked: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head, self.weights, self.cross, self.masked = nn.Linear(WIDTH, 1), weights, cross, masked

    def forward(self, values: Tensor) -> Tensor:
        other = values[:, :1] if self.cross else values
        mask = values.new_ones(values.shape[1], other.shape[1], dtype=torch.bool).triu(1) if self.masked else None
        mixed, _ = self.attention(values, other, other, need_weights=self.weights, attn_mask=mask)
        return self.head(mixed).mean(1).squeeze(-1)


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.two.weight = self.one.weight

    def forward(self, values: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(values))))).mean((1, 2))


class Tokens(nn.Module):
    """Indices made of the signs of values, so that duplicates are common."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(rows, 3, padding_idx=0), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        indices = (values > 0).long().sum(2) % self.table.num_embeddings
        scale = values.sum(2, keepdim=True)
        return self.head(self.table(indices) * scale).mean(1).squeeze(-1)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 3), nn.Linear(3, 1, bias=False)
        self.first.bias.requires_grad_(False)

    def forward(self, values: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(values[:, 0]))).squeeze(-1)


class Scaled(nn.Module):
    """A bare parameter: the tape cannot follow it, the general engine must."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, 1)
        self.rate = nn.Parameter(torch.ones(()))  # of no dimension, as in a mechanistic equation

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(values.mean(1) * self.scale * self.rate).squeeze(-1)


class Token(nn.Module):
    """A learned token before the steps of every record, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.ones(1, 1, WIDTH)), nn.Linear(WIDTH, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        steps = torch.cat([self.token.expand(len(values), -1, -1), values], dim=1)
        return self.head(torch.tanh(self.layer(steps))).mean((1, 2))


class Started(nn.Module):
    """A recurrent layer whose first state is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(WIDTH, 3, batch_first=True), nn.Linear(3, 1)
        self.first = nn.Parameter(torch.zeros(1, 1, 3))

    def forward(self, values: Tensor) -> Tensor:
        _, last = self.layer(values, self.first.expand(-1, len(values), -1).contiguous())
        return self.head(last[-1]).squeeze(-1)


class Packed(nn.Module):
    """Sequences of unequal length, packed: where a first number is positive there is one step more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        lengths = 1 + (values[:, 1:, 0] > 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
        _, last = self.layer(packed)
        return self.head((last[0] if isinstance(last, tuple) else last)[-1]).squeeze(-1)


class Deciding(nn.Module):
    """Takes another way where a record's numbers say so."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        rows = [(self.one if float(row.sum()) > 0 else self.two)(row.mean(0)) for row in values]
        return torch.cat(rows)


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
    return Pooled(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def _hooked() -> nn.Module:
    """A stack whose hook makes it something else."""
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 1), nn.Flatten(0))
    model[2].register_forward_hook(lambda _module, _inputs, output: output * 2.0)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)),
    "stack": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.LazyLinear(5, bias=False), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Identity()),
        nn.Linear(4, 1),
        nn.Flatten(0),
    ),
    "stack on sequences": lambda: nn.Sequential(
        nn.Linear(WIDTH, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1), nn.Flatten(0)
    ),
    "hooked stack": _hooked,
    "linear on sequences": lambda: Pooled(nn.Linear(WIDTH, 5, bias=False), 5),
    "conv1d": lambda: Channels(nn.Conv1d(WIDTH, 6, 3, padding=1), inplace=True),
    "conv1d, stride, dilation, groups": lambda: Channels(
        nn.Conv1d(WIDTH, 6, 2, stride=2, dilation=2, padding=2, groups=2, bias=False)
    ),
    "conv1d, same": lambda: Channels(nn.Conv1d(WIDTH, 3, 3, padding="same", dilation=2)),
    "conv2d": lambda: Channels(nn.Conv2d(WIDTH, 3, (3, 2), padding=(1, 0), stride=(1, 2)), planes=True),
    "conv2d, depthwise": lambda: Channels(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), planes=True),
    "embedding": lambda: Tokens(5),
    "embedding, large table": lambda: Tokens(300),
    "layer norm": lambda: Pooled(nn.Sequential(nn.Linear(WIDTH, 6), nn.LayerNorm(6)), 6),
    "rms norm": lambda: Pooled(nn.Sequential(nn.Linear(WIDTH, 6), nn.RMSNorm(6)), 6),
    "group norm": lambda: Channels(nn.Sequential(nn.Conv1d(WIDTH, 6, 3, padding=1), nn.GroupNorm(3, 6))),
    "gru": lambda: Pooled(nn.GRU(WIDTH, 3, 2, batch_first=True), 3),
    "gru, both directions, no bias": lambda: Pooled(
        nn.GRU(WIDTH, 3, 2, batch_first=True, bidirectional=True, bias=False), 6
    ),
    "linear before a gru": lambda: Pooled(nn.Sequential(nn.Linear(WIDTH, 5), nn.GRU(5, 3, batch_first=True)), 3),
    "lstm": lambda: Pooled(nn.LSTM(WIDTH, 3, 2, batch_first=True), 3),
    "lstm, both directions": lambda: Pooled(nn.LSTM(WIDTH, 3, batch_first=True, bidirectional=True), 6),
    "attention": lambda: Attending(weights=False),
    "attention with weights and mask": lambda: Attending(weights=True, masked=True),
    "cross-attention": lambda: Attending(weights=False, cross=True),
    "transformer": _encoder,
    "tied weights": Tied,
    "frozen parameters": Frozen,
    "a bare parameter": Scaled,
    "prelu": lambda: Pooled(nn.Sequential(nn.Linear(WIDTH, 3), nn.PReLU()), 3),
    "a class token": Token,
    "gru with a learned first state": Started,
    "packed gru": lambda: Packed(nn.GRU(WIDTH, 3, batch_first=True)),
    "packed lstm": lambda: Packed(nn.LSTM(WIDTH, 3, batch_first=True)),
    "lstm with a projection": lambda: Pooled(nn.LSTM(WIDTH, 5, batch_first=True, proj_size=3), 3),
    "plain rnn": lambda: Pooled(nn.RNN(WIDTH, 3, 2, batch_first=True), 3),
    "plain rnn, relu, both directions": lambda: Pooled(
        nn.RNN(WIDTH, 3, batch_first=True, bidirectional=True, nonlinearity="relu"), 6
    ),
    "control flow that depends on values": Deciding,
}
NEEDS_GENERAL = frozenset({"a bare parameter", "prelu", "a class token"})
NEEDS_AUTOGRAD = frozenset(
    {
        "gru with a learned first state",
        "packed gru",
        "packed lstm",
        "lstm with a projection",
        "plain rnn",
        "plain rnn, relu, both directions",
        "control flow that depends on values",
    }
)


def engine_of(name: str) -> str:
    """The fastest engine that runs the model."""
    return "torch.func" if name in NEEDS_GENERAL else "autograd" if name in NEEDS_AUTOGRAD else "book-keeping"


def build(name: str, seed: int = 0) -> nn.Module:
    """The model in float64, its lazy layers shaped, every parameter random (torch starts some at zero or one)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name]().double()
        model(torch.randn(2, STEPS, WIDTH, dtype=torch.float64))
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.randn_like(value) * 0.6)
    return model


STEPS = 5


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss the engine does not know by name."""
    return F.huber_loss(outputs, targets)
