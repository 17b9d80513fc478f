"""Feature networks in files: TorchScript and ONNX, which say themselves how they are computed."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript", ".jit")


def network_file(path: str | Path) -> nn.Module:
    """The feature network in a file, on the CPU in eval mode.

    path: a TorchScript archive (.pt, .pth, .ts, .torchscript, .jit) or an ONNX model (.onnx, which
    needs the extra `logsnr[onnx]`) from images (B, *event), float32 as they are sampled, to
    features (B, d): the first output, flattened. Its metric's name has the file's name and a part
    of its hash.
    Raises ValueError for a file that is missing, damaged or of another kind: nothing is unpickled.
    """
    path = Path(path)
    if path.suffix.lower() not in (*TORCHSCRIPT, ".onnx"):
        raise ValueError(
            f"feature_network={str(path)!r}: need a TorchScript file ({', '.join(TORCHSCRIPT)}) or "
            "an ONNX file (.onnx)"
        )
    if not path.is_file():
        raise ValueError(f"feature_network={str(path)!r}: there is no such file")
    network: OnnxFeatures | TorchScriptFeatures
    if path.suffix.lower() == ".onnx":
        network = OnnxFeatures(path)
    else:
        network = TorchScriptFeatures(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    network.metric_name = f"{path.stem}-feature FID ({digest})"
    return network.eval()


class TorchScriptFeatures(nn.Module):
    """A TorchScript archive as a feature network."""

    metric_name: str

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the format is the user's
                self.network = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            raise ValueError(
                f"feature_network={str(path)!r} is not a TorchScript archive: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images.float())
        return (output[0] if isinstance(output, tuple | list) else output).flatten(1)


class OnnxFeatures(nn.Module):
    """An ONNX model with one input as a feature network."""

    metric_name: str

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"feature_network={str(path)!r}: an ONNX file needs the extra logsnr[onnx]: "
                "pip install 'logsnr[onnx]'"
            ) from error
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors have no common class but this
            raise ValueError(
                f"feature_network={str(path)!r} is not an ONNX model: {error}"
            ) from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(f"feature_network={str(path)!r} has {len(inputs)} inputs; need one")
        self.input = inputs[0].name

    def forward(self, images: Tensor) -> Tensor:
        output = self.session.run(None, {self.input: images.float().cpu().numpy()})[0]
        return torch.from_numpy(output).flatten(1)
