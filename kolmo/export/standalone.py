"""A residual network from its state dict, on torch alone.

    model = Network()
    model.load_state_dict(torch.load("network.pt", weights_only=True))

`model(x)` gives logits of class 1 for points x (N, d), `model.probability(x)` their probabilities. Run as a
script it reads network.pt beside itself, and points from standard input: one a line, separated by commas. A
header x1,... and columns behind the d-th, such as labels, are passed over.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

SETTINGS = {"dim": 2, "width": 16, "depth": 20, "activation": "tanh", "dtype": "float64"}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "gelu": nn.GELU, "relu": nn.ReLU,
    "identity": nn.Identity,
}  # fmt: skip


class Sine(nn.Module):
    """sin(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Network(nn.Module):
    """x <- x + h V_k sigma(W_k x + b_k) in each layer k, then the logit of class 1: w . x + c."""

    step: Tensor

    def __init__(self, settings: dict = SETTINGS) -> None:
        super().__init__()
        dim, width, depth = settings["dim"], settings["width"], settings["depth"]
        kind = {"dtype": getattr(torch, settings["dtype"])}
        self.register_buffer("step", torch.ones((), **kind))  # h, of the state dict like the weights
        self.activation = {**ACTIVATIONS, "sin": Sine}[settings["activation"]]()
        self.hidden = nn.ModuleList(nn.Linear(dim, width, **kind) for _ in range(depth))
        self.output = nn.ModuleList(nn.Linear(width, dim, bias=False, **kind) for _ in range(depth))
        self.head = nn.Linear(dim, 1, **kind)

    def features(self, x: Tensor) -> Tensor:
        """The last features, (N, d) for points x (N, d)."""
        for hidden, output in zip(self.hidden, self.output):  # noqa: B905
            x = x + self.step * output(self.activation(hidden(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))[:, 0]

    def probability(self, x: Tensor) -> Tensor:
        """Of class 1, (N,)."""
        return torch.sigmoid(self(x))


if __name__ == "__main__":
    model = Network()
    model.load_state_dict(torch.load(Path(__file__).with_suffix(".pt"), weights_only=True))
    lines = [line.split(",")[: model.head.in_features] for line in sys.stdin if line.strip()]
    rows = [[float(part) for part in line] for line in lines if line[0].strip() != "x1"]
    with torch.no_grad():
        for number in model.probability(torch.tensor(rows, dtype=model.head.weight.dtype)).tolist():
            print(repr(number))
