r"""A trained network as torch's own layers, and its files.

The exported network is the one without noise: features of `network(x)`, and the logit of class 1,

    log P(1 | x) / P(0 | x) = Phi_0(X_L) - Phi_1(X_L) = w . X_L + c,

w = s e_1, c = 0 for the loss `Logistic` of scale s, and the head's own for `LogisticHead`.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from kolmo.errors import InputError
from kolmo.export import standalone
from kolmo.files import output_folder, write_atomically
from kolmo.loss import Logistic, LogisticHead, Loss
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.text import nearest

#: formats and their precision by default: ONNX's runtimes have few kernels for float64
FORMATS = {"torch": "float64", "onnx": "float32"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_SETTINGS = re.compile(r"^SETTINGS = .*$", re.MULTILINE)


def plain(network: LayeredNetwork, loss: Loss | None = None, dtype: str = "float64") -> standalone.Network:
    """The network without noise as a torch module: x (N, d) -> logits of class 1 (N,).

    loss: whose logits they are (Logistic() by default). dtype: 'float64' or 'float32'. Raises InputError on a
    block other than the built-in one, and on a loss that is not logistic.
    """
    if not isinstance(network, ResidualNetwork):
        raise InputError(
            "export: only the built-in residual block is written; the module of a FieldNetwork is torch's "
            "already, save network.module.state_dict()"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown{nearest(dtype, DTYPES)}")
    weight, bias = _head(Logistic() if loss is None else loss, network.dim)
    model = standalone.Network(_settings(network, dtype))
    with torch.no_grad():
        for k in range(network.depth):
            model.get_parameter(f"hidden.{k}.weight").copy_(network.W[k])
            model.get_parameter(f"hidden.{k}.bias").copy_(network.b[k])
            model.get_parameter(f"output.{k}.weight").copy_(network.V[k])
        model.step.fill_(network.step)
        model.head.weight.copy_(weight[None])
        model.head.bias.copy_(bias)
    return model.eval()


def _settings(network: ResidualNetwork, dtype: str) -> dict[str, Any]:
    return {
        "dim": network.dim,
        "width": network.width,
        "depth": network.depth,
        "activation": network.activation.name,
        "dtype": dtype,
    }


def _head(loss: Loss, dim: int) -> tuple[Tensor, Tensor]:
    if isinstance(loss, LogisticHead):
        return loss.weight.detach(), loss.bias.detach()
    if isinstance(loss, Logistic):
        return loss.scale * torch.eye(dim, dtype=torch.float64)[0], torch.zeros((), dtype=torch.float64)
    raise InputError(f"export: the loss {loss.kind!r} has no logits; expected logistic or logistic_head")


def write(
    network: LayeredNetwork,
    folder: str | Path,
    format: str = "torch",
    *,
    loss: Loss | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the network into a folder, made where it is not there, and return the files.

    format: 'torch' (network.pt, a state dict that `torch.load(..., weights_only=True)` reads, and network.py,
    which needs torch alone) or 'onnx' (network.onnx: x (N, d) -> logit (N,), probability (N,)). dtype: by
    default float64 for torch and float32 for onnx. Raises InputError, also where the folder is not empty and
    `overwrite` is not given.
    """
    contents = _contents(network, format, loss, dtype)  # before there is a folder
    folder = output_folder(folder, overwrite)
    for name, content in contents.items():
        write_atomically(folder / name, partial(_put, content))
    return [folder / name for name in contents]


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _contents(network: LayeredNetwork, format: str, loss: Loss | None, dtype: str | None) -> dict[str, bytes]:
    """Files by name."""
    if format not in FORMATS:
        raise InputError(f"format: {format!r} is unknown{nearest(format, FORMATS)}")
    dtype = FORMATS[format] if dtype is None else dtype
    model = plain(network, loss, dtype)
    if format == "onnx":
        return {"network.onnx": _onnx(model)}
    assert isinstance(network, ResidualNetwork)
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    source = Path(standalone.__file__).read_text(encoding="utf-8")
    script = _SETTINGS.sub(lambda _: f"SETTINGS = {_settings(network, dtype)!r}", source, count=1)
    return {"network.pt": state.getvalue(), "network.py": script.encode()}


class _Outputs(nn.Module):
    """Logit and probability."""

    def __init__(self, model: standalone.Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.model(x)
        return logit, torch.sigmoid(logit)


def _onnx(model: standalone.Network) -> bytes:
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise InputError(f"format: 'onnx' needs {name}; install it with: pip install 'kolmo[onnx]'")
    points = torch.zeros(3, model.head.in_features, dtype=model.head.weight.dtype)
    batch = torch.export.Dim("points")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch tells of what it looked for and did not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's parts about each other
            program = torch.onnx.export(
                _Outputs(model).eval(),
                (points,),
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=["logit", "probability"],
                dynamic_shapes={"x": {0: batch}},
            )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces of the export, with the paths of this machine
        content: bytes = program.model_proto.SerializeToString()
    finally:
        logging.disable(before)
    return content
