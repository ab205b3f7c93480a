from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from same_results import assert_equal_results, calls, needs_kernels
from torch import nn
from torch.nn.utils import prune

import segkernels

pytestmark = needs_kernels


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=6, dilation=6, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


IMAGE = (2, 3, 64, 64)
OURS = {"max_pool2d", "conv2d", "conv_transpose2d", "upsample_bilinear2d"}


def test_replaces_and_restores():
    model = net()
    before = copy.deepcopy(model)
    modules, parameters, keys = list(model), list(model.parameters()), list(model.state_dict())
    image = torch.randn(IMAGE)
    expected = before(image)
    report = segkernels.accelerate(model)
    assert [entry.path for entry in report.replaced] == ["1", "2", "5", "6"]
    assert report["0"].after is None and "dense" in report["0"].reason
    assert report.others == 3 and report.model is model
    assert calls(model, image) == OURS
    assert_equal_results(model, before, image)
    assert all(a is b for a, b in zip(model, modules)) and list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert all(isinstance(a, type(b)) for a, b in zip(model, before))
    assert segkernels.restore(model) == 4
    assert [type(a) for a in model] == [type(b) for b in before]
    assert calls(model, image) == set()
    fresh = copy.deepcopy(before)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(image), fresh.eval()(image)) and expected.shape == (2, 8, 128, 128)


def test_report_as_text_and_data():
    report = segkernels.accelerate(net())
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["replaced"], data["kept"], data["others"]) == (4, 1, 3) and len(report) == 5
    assert data["entries"][1] == {
        "path": "1", "before": "torch.MaxPool2d", "after": "segkernels max_pool2d", "reason": None
    }  # fmt: skip
    text = str(report)
    assert "4 modules replaced, 1 kept, 3 of other kinds" in text and "torch.ConvTranspose2d" in text
    with pytest.raises(KeyError):
        report["7"]


def test_report_prints_without_rich(monkeypatch, capsys):
    report = segkernels.accelerate(net())
    report.print()
    assert "4 modules replaced" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    report.print()
    assert capsys.readouterr().out == f"{report}\n"


def test_twice_is_harmless():
    model = net()
    segkernels.accelerate(model)
    classes = [type(module) for module in model]
    report = segkernels.accelerate(model)
    assert [type(module) for module in model] == classes
    assert report["2"].reason == "accelerated before" and len(report.replaced) == 4
    assert segkernels.restore(model) == 4 and segkernels.restore(model) == 0
    assert [type(module) for module in model] == [type(module) for module in net()]


def test_not_in_place():
    model = net()
    report = segkernels.accelerate(model, inplace=False)
    assert segkernels.restore(model) == 0
    image = torch.randn(IMAGE)
    assert calls(report.model, image) == OURS and calls(model, image) == set()
    torch.testing.assert_close(report.model(image), model(image))
    assert segkernels.restore(report.model) == 4


def test_not_a_module():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got function"):
        segkernels.accelerate(lambda x: x)


def test_the_model_itself():
    loss = nn.CrossEntropyLoss()
    assert segkernels.accelerate(loss)[""].after == "segkernels softmax_statistics"
    assert segkernels.restore(loss) == 1 and type(loss) is nn.CrossEntropyLoss


def test_shared_modules_stay_shared():
    up = nn.ConvTranspose2d(8, 8, 2, 2)
    model = nn.ModuleDict({"a": up, "b": nn.Sequential(up)})
    report = segkernels.accelerate(model)
    assert [entry.path for entry in report.entries] == ["a"] and model["b"][0] is up
    assert segkernels.restore(model) == 1 and type(up) is nn.ConvTranspose2d


def test_hooks_flags_and_mode():
    model = net().eval()
    seen = []
    model[5].register_forward_hook(lambda module, args, output: seen.append("forward"))
    model[5].register_forward_pre_hook(lambda module, args: seen.append("before"))
    model[5].register_full_backward_hook(lambda module, *grads: seen.append("backward"))
    model[5].weight.requires_grad_(False)
    model[2].note = "mine"
    segkernels.accelerate(model)
    model(torch.randn(IMAGE)).sum().backward()
    assert seen == ["before", "forward", "backward"]
    assert not model.training and not model[5].weight.requires_grad and model[5].weight.grad is None
    assert model[2].note == "mine" and repr(model) == repr(net())
    segkernels.restore(model)
    model(torch.randn(IMAGE)).sum().backward()
    assert len(seen) == 6


def test_training_and_loading_then_restoring():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    segkernels.accelerate(model)
    weight = model[5].weight.detach().clone()
    model(torch.randn(IMAGE)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[5].weight, weight)
    other = net().state_dict()
    model.load_state_dict(other)
    segkernels.restore(model)
    reference = net()
    reference.load_state_dict(other)
    image = torch.randn(IMAGE)
    assert torch.equal(model.eval()(image), reference.eval()(image))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    model = net().to(dtype).eval()
    reference = copy.deepcopy(model)
    segkernels.accelerate(model)
    image = torch.randn(IMAGE, dtype=dtype)
    assert calls(model, image) == OURS
    output, expected = model(image), reference(image)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=(1e-12 if dtype == torch.float64 else 2e-2))


def test_complex_parameters_are_kept():
    model = nn.ConvTranspose2d(8, 8, 2, 2, dtype=torch.complex64)
    assert segkernels.accelerate(model)[""].reason == "complex64 parameters"


def test_channels_last_and_autocast():
    model = net().eval().to(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    segkernels.accelerate(model)
    image = torch.randn(IMAGE).contiguous(memory_format=torch.channels_last)
    assert_equal_results(model, reference, image)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = model(image), reference(image)
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-2)


def test_copies_and_pickles():
    model = net().eval()
    segkernels.accelerate(model)
    image = torch.randn(IMAGE)
    expected = model(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(other[2]) is type(model[2]) and torch.equal(other(image), expected)
    other = pickle.loads(pickle.dumps(model))
    assert segkernels.restore(other) == 4 and type(other[2]) is nn.Conv2d
    assert type(model[2]) is not nn.Conv2d


def test_saved_models_load_in_another_process(tmp_path):
    model = net().eval()
    image = torch.randn(IMAGE)
    segkernels.accelerate(model)
    torch.save((model, image, model(image)), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, image, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "import segkernels\n"
        "torch.testing.assert_close(model(image), expected)\n"
        "assert segkernels.restore(model) == 4\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


def test_compile():
    model = net()
    reference = copy.deepcopy(model)
    segkernels.accelerate(model)
    ran = set()

    def backend(graph, inputs):
        names = {str(node.target).split(".")[1] for node in graph.graph.nodes if str(node.target).startswith("segkernels.")}

        def run(*args):
            ran.update(names)
            return graph(*args)

        return run

    def ran_by(function):
        ran.clear()
        function(image)
        return set(ran)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    image = torch.randn(IMAGE)
    torch.testing.assert_close(compiled(image), reference(image))
    assert ran == OURS
    # What is compiled already notices that its modules change.
    assert segkernels.restore(compiled) == 4
    assert ran_by(compiled) == set()
    assert segkernels.accelerate(compiled)["_orig_mod.5"].after == "segkernels conv_transpose2d"
    assert ran_by(compiled) == OURS


def test_data_parallel_wrapper(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch.distributed is not there")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(net())
        assert segkernels.accelerate(model)["module.5"].after is not None
        model(torch.randn(IMAGE)).sum().backward()
        assert model.module[5].weight.grad is not None
        assert segkernels.restore(model) == 4
    finally:
        torch.distributed.destroy_process_group()


class Own(nn.ConvTranspose2d):
    def forward(self, input, output_size=None):
        return super().forward(input, output_size) * 2


class Plain(nn.ConvTranspose2d):
    """A constructor of its own, torch's forward."""

    def __init__(self, channels):
        super().__init__(channels, channels, 2, 2)


class OwnPadding(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input + 1, weight, bias)


def test_subclasses():
    model = nn.Sequential(Own(8, 8, 2, 2), Plain(8), OwnPadding(8, 8, 3, dilation=6, padding=6, groups=8))
    reference = copy.deepcopy(model)
    report = segkernels.accelerate(model)
    assert report["0"].reason == "Own.forward is its own" and report["2"].reason == "OwnPadding._conv_forward is its own"
    assert report["1"].after == "segkernels conv_transpose2d" and isinstance(model[1], Plain)
    assert_equal_results(model, reference, torch.randn(2, 8, 24, 24))
    assert segkernels.restore(model) == 1 and type(model[1]) is Plain


def test_forward_set_on_the_instance():
    model = nn.MaxPool2d(2)
    model.forward = lambda input: input
    assert segkernels.accelerate(model)[""].reason == "its forward was set on the instance"


@pytest.mark.filterwarnings("ignore")
def test_parametrized_modules_are_kept():
    def transposed():
        return nn.ConvTranspose2d(8, 8, 2, 2)

    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(transposed()),
        nn.utils.parametrizations.spectral_norm(transposed()),
        nn.utils.weight_norm(transposed()),
        nn.utils.spectral_norm(transposed()),
        prune.l1_unstructured(transposed(), "weight", 0.5),
    )
    reasons = [entry.reason for entry in segkernels.accelerate(model).entries]
    assert reasons == [
        "parametrized",
        "parametrized",
        "its weight is made by WeightNorm",
        "its weight is made by SpectralNorm",
        "its weight is made by L1Unstructured",
    ]


def test_parametrized_afterwards():
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2))
    segkernels.accelerate(model)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match="restore: expected 0 as accelerate"):
        segkernels.restore(model)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert segkernels.restore(model) == 1 and type(model[0]) is nn.ConvTranspose2d


def test_lazy_modules():
    model = nn.Sequential(nn.LazyConvTranspose2d(8, 2, 2))
    assert segkernels.accelerate(model)["0"].reason == "lazy: accelerate again after the first batch"
    model(torch.randn(2, 8, 24, 24))
    assert segkernels.accelerate(model)["0"].after == "segkernels conv_transpose2d"


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_scripted_modules_are_kept():
    qat = torch.ao.nn.qat.Conv2d(8, 8, 3, groups=8, dilation=6, qconfig=torch.ao.quantization.default_qat_qconfig)
    assert segkernels.accelerate(qat)[""].reason == "quantised"
    assert segkernels.accelerate(torch.ao.nn.quantized.Conv2d(8, 8, 3))[""].reason == "quantised"
    scripted = torch.jit.script(nn.Sequential(nn.MaxPool2d(2)))
    assert segkernels.accelerate(scripted)["0"].reason == "TorchScript"


def test_without_a_kernel(monkeypatch):
    monkeypatch.setattr(segkernels._accelerate, "devices", lambda ops: frozenset())
    monkeypatch.setattr(
        "segkernels._accelerate._classes._register.tiers",
        lambda: {"max_pool2d": {"cpu": {"chosen": "reference", "tiers": {"cpu": "library not built: no compiler"}}}},
    )
    reason = segkernels.accelerate(nn.MaxPool2d(2))[""].reason
    assert reason == "no kernel of max_pool2d on cpu: library not built: no compiler"


def test_on_the_meta_device():
    model = net().to("meta")
    assert len(segkernels.accelerate(model).replaced) == 4
    model.to_empty(device="cpu").load_state_dict(net().state_dict())
    assert calls(model, torch.randn(IMAGE)) == OURS
