"""Feature networks in files."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

from logsnr.benchmarks.metrics.features import Extractor, extract
from logsnr.benchmarks.metrics.network_files import network_file


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Flatten()).eval()


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".TorchScript"])
def test_a_torchscript_file_gives_the_features_of_its_module(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network(), images()).save(str(path))
    loaded = network_file(path)
    truth = network()(images()).double()
    torch.testing.assert_close(extract(images(), loaded, batch_size=2), truth, rtol=1e-6, atol=1e-6)
    extractor = Extractor.of(loaded, images())
    assert extractor.name.startswith("net-feature FID (") and extractor.dimension == 12
    assert Extractor.of(network_file(str(path)), images()).name == extractor.name


def test_an_onnx_file_gives_the_features_of_its_module(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "features",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 1, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 3])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    truth = (images().flatten(1) @ weight).double()
    found = extract(images(), network_file(path), batch_size=2)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_an_onnx_file_without_the_extra_names_it(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"net\.onnx.*logsnr\[onnx\]"):
        network_file(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.pt.*no such file"):
        network_file(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match=r"net\.safetensors.*TorchScript"):
        network_file(tmp_path / "net.safetensors")
    pickled = tmp_path / "module.pt"
    torch.save(network().state_dict(), pickled)
    with pytest.raises(ValueError, match="not a TorchScript archive"):
        network_file(pickled)
    pickled.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a TorchScript archive"):
        network_file(pickled)


class WithLogits(nn.Module):
    """A feature network that names itself."""

    metric_name = "my FID"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_a_network_may_name_its_metric():
    assert Extractor.of(WithLogits().eval(), images()).name == "my FID"
    assert Extractor.of(nn.Flatten().eval(), images()).name == "Flatten-feature FID"
