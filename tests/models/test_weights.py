"""Weights: files, enums, downloads, preprocessing, and what happens to those that do not fit."""

from __future__ import annotations

import copy
import hashlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from segkernels.models import fcn_resnet50, weights
from segkernels.models._preprocessing import Preprocessing
from segkernels.models._semantic import read_semantic
from segkernels.models._weights import (
    WeightsEntry,
    WeightsEnum,
    _published,
    check_member,
    load_backbone,
    load_weights,
    read_state_dict,
)

ENUMS = [value for value in vars(weights).values() if isinstance(value, type) and issubclass(value, WeightsEnum)]
ENUMS.remove(WeightsEnum)


class Tiny(nn.Module):
    """A convolution, its norm, and a classifier."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Conv2d(4, num_classes, 1)


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def is_equal(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the directory of the server that stands for download.pytorch.org."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "server").mkdir()
    # What a test publishes is forgotten after it.
    monkeypatch.setattr("segkernels.models._weights._published", dict(_published))
    return tmp_path


def publish(hub: Path, state: object, digits: int = 8) -> WeightsEnum:
    """A state dict on the server, under a name with its hash, as the member of an enum."""
    file = save(state, hub / "server" / "tiny.pth")
    file = file.rename(hub / "server" / f"tiny-{hashlib.sha256(file.read_bytes()).hexdigest()[:digits]}.pth")

    class Tiny_Weights(WeightsEnum):
        V1 = WeightsEntry(file.as_uri(), {"categories": tuple("abcde")}, Preprocessing())

    return Tiny_Weights.V1


def test_enums_are_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    assert len(ENUMS) == 16
    for ours in ENUMS:
        places = [models, models.segmentation, models.detection]
        theirs = next(getattr(place, ours.__name__) for place in places if hasattr(place, ours.__name__))
        assert ours.DEFAULT.name == theirs.DEFAULT.name
        # VGG16 has another member, features for a detector.
        assert {member.name for member in theirs} - {member.name for member in ours} <= {"IMAGENET1K_FEATURES"}
        for member in ours:
            other = theirs[member.name]
            assert member.url == other.url and member.sha256 in member.url and len(member.sha256) == 8
            assert member.meta["num_params"] == other.meta["num_params"]
            assert member.meta["metrics"] == other.meta["_metrics"]
            if "ImageNet-1K" not in member.meta["metrics"]:
                assert list(member.meta["categories"]) == other.meta["categories"]


@pytest.mark.parametrize("size", [(401, 260), (90, 100)])
@pytest.mark.parametrize(
    "member",
    [
        weights.FCN_ResNet50_Weights.DEFAULT,
        weights.MaskRCNN_ResNet50_FPN_Weights.DEFAULT,
        weights.ResNet50_Weights.IMAGENET1K_V1,
        weights.ResNet50_Weights.IMAGENET1K_V2,
    ],
    ids=str,
)
def test_preprocessing(member: WeightsEnum, size: tuple[int, int]) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.get_weight(str(member)).transforms()
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    for input in (image, image[0] / 255):
        output = member.transforms()(input)
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, theirs(input), rtol=0, atol=1e-5)


def test_preprocessing_crops_what_is_smaller() -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    image = torch.rand(3, 31, 50)
    theirs = presets.ImageClassification(crop_size=45, resize_size=20)
    torch.testing.assert_close(Preprocessing(20, 45)(image), theirs(image), rtol=0, atol=1e-5)


def test_preprocessing_of_bad_images() -> None:
    with pytest.raises(ValueError, match=r"image: expected \[..., 3, H, W\], got \[1, 4, 5\]"):
        Preprocessing()(torch.rand(1, 4, 5))
    with pytest.raises(TypeError, match="image: expected uint8 or a floating-point dtype, got torch.int64"):
        Preprocessing()(torch.ones(3, 4, 5, dtype=torch.int64))


def test_download(hub: Path, capsys: pytest.CaptureFixture) -> None:
    saved = Tiny()
    member = publish(hub, saved.state_dict())
    model = Tiny()
    load_weights(model, member, progress=False)
    assert is_equal(model, saved.state_dict())
    assert capsys.readouterr() == ("", "")
    cached = list((hub / "hub" / "checkpoints").iterdir())
    assert [file.name for file in cached] == [Path(member.url).name]
    # From now on the server is not needed.
    Path(member.url.removeprefix("file://")).unlink()
    assert read_state_dict(member).keys() == saved.state_dict().keys()
    assert member.get_state_dict().keys() == saved.state_dict().keys()


def test_progress_bar(hub: Path, capsys: pytest.CaptureFixture) -> None:
    read_state_dict(publish(hub, Tiny().state_dict()), progress=True)
    assert "100" in capsys.readouterr().err


def test_failed_download_names_the_manual_way(hub: Path) -> None:
    member = publish(hub, Tiny().state_dict())
    Path(member.url.removeprefix("file://")).unlink()
    with pytest.raises(RuntimeError, match=r"cannot download file:.*tiny-.*; save that file as .*/checkpoints/tiny-") as error:
        read_state_dict(member, progress=False)
    assert "\n" not in str(error.value)
    assert list((hub / "hub" / "checkpoints").iterdir()) == []


def test_downloads_are_checked(hub: Path) -> None:
    member = publish(hub, Tiny().state_dict())
    file = Path(member.url.removeprefix("file://"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="cannot download .*invalid hash value"):
        read_state_dict(member, progress=False)
    assert list((hub / "hub" / "checkpoints").iterdir()) == []


def test_cached_files_are_checked(hub: Path) -> None:
    member = publish(hub, Tiny().state_dict())
    read_state_dict(member, progress=False)
    (cached,) = (hub / "hub" / "checkpoints").iterdir()
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    for source in (member, cached):
        with pytest.raises(ValueError, match=rf"{cached.name} is truncated or changed: .*{member.sha256}"):
            read_state_dict(source, progress=False)


def test_names_of_published_files_keep_their_hash(tmp_path: Path) -> None:
    path = save(Tiny().state_dict(), tmp_path / "resnet50-0676ba61.pth")
    with pytest.raises(ValueError, match="truncated or changed.*0676ba61"):
        read_state_dict(path)
    # A number in another name is not a hash.
    assert read_state_dict(path.rename(tmp_path / "mine-20261121.pth"))


def test_members_of_torchvisions_enums(hub: Path) -> None:
    api = pytest.importorskip("torchvision.models._api")
    state = Tiny().state_dict()
    member = publish(hub, state)

    class Tiny_Weights(api.WeightsEnum):
        V1 = api.Weights(url=member.url, transforms=partial(Preprocessing), meta={"categories": list("abcde")})

    assert read_state_dict(Tiny_Weights.V1, progress=False).keys() == state.keys()
    check_member(Tiny_Weights.V1, "tiny", 5)
    with pytest.raises(ValueError, match="num_classes: expected 5 for Tiny_Weights.V1, got 6"):
        check_member(Tiny_Weights.V1, "tiny", 6)


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    saved, model = Tiny(), Tiny()
    path = tmp_path / "tiny.safetensors"
    safetensors.save_file(saved.state_dict(), path)
    load_weights(model, str(path))
    assert is_equal(model, saved.state_dict())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="tiny.safetensors is not a safetensors file"):
        read_state_dict(path)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=r"tiny.safetensors needs safetensors: pip install 'segkernels\[safetensors\]'"):
        read_state_dict(path)


class Payload:
    """Not a tensor."""


@pytest.mark.parametrize(
    "content, message",
    [
        ([torch.ones(1)], "is not a state dict"),
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "is not a state dict .*; save what its entry 'model' holds"),
        ({"a": 1.0}, "is not a state dict"),
        (Payload(), "is not a file that torch.load reads with weights_only=True"),
    ],
    ids=["list", "checkpoint", "numbers", "object"],
)
def test_not_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    path = save(content, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=rf"weights: .*wrong.pth {message}"):
        read_state_dict(path)


@pytest.mark.parametrize("kept", [0, 10, 500, -30])
def test_truncated_files(kept: int, tmp_path: Path) -> None:
    path = save(Tiny().state_dict(), tmp_path / "short.pth")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="weights: .*short.pth is not a file that torch.load reads") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    for name in ("none.pth", "none.safetensors", ""):
        with pytest.raises(FileNotFoundError, match=f"weights: no file .*{name}"):
            read_state_dict(tmp_path / name)
    with pytest.raises(TypeError, match="weights: expected a path or a member of a weights enum, got bool"):
        read_state_dict(True)


def changed(**entries: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {key.replace(".", "_"): value for key, value in Tiny().state_dict().items()}
    state.update(entries)
    names = {key.replace(".", "_"): key for key in Tiny().state_dict()}
    return {names.get(key, key): value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    "state, message",
    [
        (changed(conv_weight=None), "is not for this Tiny of 9 tensors: missing conv.weight$"),
        (changed(other=torch.ones(1)), "is not for this Tiny of 9 tensors: unexpected other$"),
        ({"a": torch.ones(1)}, "missing conv.weight, conv.bias, norm.weight and 5 more; unexpected a$"),
        (changed(conv_weight=torch.ones(4, 1, 1, 1)), r"other shapes than this Tiny: conv.weight \[4, 1, 1, 1\] instead of"),
        (Tiny(7).state_dict(), r"classifier.weight \[7, 4, 1, 1\] instead of \[5, 4, 1, 1\], .* \(another num_classes\?\)$"),
    ],
    ids=["missing", "unexpected", "architecture", "shape", "classes"],
)
def test_weights_that_do_not_fit(state: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    path = save(state, tmp_path / "wrong.pth")
    model = Tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"weights: .*wrong.pth .*{message}"):
        load_weights(model, path)
    assert is_equal(model, before)


def test_counters_of_batches_are_optional(tmp_path: Path) -> None:
    """Files from before BatchNorm had them, and files for frozen norms."""
    saved, model = Tiny(), Tiny()
    load_weights(model, save(changed(norm_num_batches_tracked=None), tmp_path / "old.pth"))
    state = saved.state_dict() | {"conv.num_batches_tracked": torch.tensor(3)}
    load_weights(model, save(state, tmp_path / "new.pth"))
    assert is_equal(model, saved.state_dict())


def test_converted_keys(tmp_path: Path) -> None:
    saved, model = Tiny(), Tiny()
    path = save({f"net.{key}": value for key, value in saved.state_dict().items()}, tmp_path / "tiny.pth")
    load_weights(model, path, convert=lambda state: {key.removeprefix("net."): value for key, value in state.items()})
    assert is_equal(model, saved.state_dict())


def test_backbone(tmp_path: Path) -> None:
    state = {f"features.{key}": value for key, value in Tiny().state_dict().items()}
    path = save(state | {"fc.weight": torch.ones(2)}, tmp_path / "classifier.pth")
    model = Tiny()
    load_backbone(model, path, prefix="features.")
    assert is_equal(model, {key.removeprefix("features."): value for key, value in state.items()})
    with pytest.raises(ValueError, match="classifier.pth is not for this Tiny.*unexpected features.conv.weight"):
        load_backbone(model, path)


def test_members_of_another_model_are_not_downloaded() -> None:
    with pytest.raises(ValueError, match="member of the enum for fcn_resnet50, got FCN_ResNet101.*, for fcn_resnet101"):
        fcn_resnet50(weights=weights.FCN_ResNet101_Weights.DEFAULT)
    with pytest.raises(ValueError, match="num_classes: expected 21 for FCN_ResNet50_Weights.*, got 5"):
        fcn_resnet50(weights=weights.FCN_ResNet50_Weights.DEFAULT, num_classes=5)
    with pytest.raises(ValueError, match="member of the enum for resnet50, got ResNet18"):
        fcn_resnet50(weights_backbone=weights.ResNet18_Weights.DEFAULT)


def test_auxiliary_head_follows_the_weights(tmp_path: Path) -> None:
    state = {"classifier.weight": torch.ones(1)}
    without = save(state, tmp_path / "without.pth")
    path = save(state | {"aux_classifier.weight": torch.ones(1)}, tmp_path / "aux.pth")
    for source, given, expected in [
        (None, None, False), (None, True, True), (None, False, False),
        (without, None, False), (without, True, True), (without, False, False),
        (path, None, True), (path, True, True),
    ]:  # fmt: skip
        assert read_semantic("fcn_resnet50", source, False, 21, given)[1] is expected
    with pytest.raises(
        ValueError, match="aux_loss: expected None or True for .*aux.pth, which has an auxiliary head, got False"
    ):
        read_semantic("fcn_resnet50", path, False, 21, False)
