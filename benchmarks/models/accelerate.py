"""Training steps of other libraries' models after segkernels.accelerate(), against the same models as they come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

import segkernels
from benchmarks.cases import Case, Work

Builder = Callable[[], nn.Module]


@functools.cache
def shell(build: Builder, accelerated: bool) -> nn.Module:
    """The model whose values each call brings along."""
    torch.manual_seed(0)
    model = build().train()
    if accelerated:
        segkernels.accelerate(model)
    return model


def step(build: Builder, accelerated: bool) -> Callable[..., torch.Tensor]:
    def run(image: torch.Tensor, parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor]) -> torch.Tensor:
        model = shell(build, accelerated)
        values = dict(zip((name for name, _ in model.named_parameters()), parameters))
        values |= dict(zip((name for name, _ in model.named_buffers()), buffers))
        torch.manual_seed(0)  # the samplers of a detector
        return functional_call(model, values, (image,))

    return run


def smp(name: str, unused: tuple[str, ...] = (), **options: Any) -> Builder:
    """``unused``: stages of the encoder that the model builds and does not run, whose parameters have no gradient."""

    def build() -> nn.Module:
        import segmentation_models_pytorch

        model = getattr(segmentation_models_pytorch, name)(encoder_weights=None, classes=21, **options)
        for stage in unused:
            setattr(model.encoder, stage, nn.Identity())
        return model

    return build


def torchvision(name: str) -> Builder:
    def build() -> nn.Module:
        import torchvision

        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = getattr(torchvision.models.segmentation, name)(
                    weights=None, weights_backbone=None, num_classes=21
                )
                for module in self.modules():
                    if isinstance(module, nn.Dropout):
                        module.p = 0.0

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return self.model(image)["out"]

        return Logits()

    return build


def monai(name: str, **options: Any) -> Builder:
    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(spatial_dims=2, in_channels=1, out_channels=4, **options)

    return build


class Detector(nn.Module):
    """The sum of Mask R-CNN's losses over a batch, with boxes that stay."""

    def __init__(self, size: int, batch: int, boxes: int = 6) -> None:
        super().__init__()
        import torchvision

        self.model = torchvision.models.detection.maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=21,
            min_size=size,
            max_size=size,
            rpn_post_nms_top_n_train=256,
            box_batch_size_per_image=64,
        )
        self.targets = list(self._targets(size, batch, boxes))

    @staticmethod
    def _targets(size: int, batch: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(batch):
            corner = torch.rand(count, 2) * size / 2
            boxes = torch.cat([corner, corner + size / 20 + torch.rand(count, 2) * size * 0.4], 1)
            masks = torch.zeros(count, size, size, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
                mask[y1:y2, x1:x2] = 1
            yield {"boxes": boxes, "labels": torch.randint(1, 21, (count,)), "masks": masks}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(self.model(list(image), self.targets).values())).sum()


def case(name: str, build: Builder, shape: tuple[int, ...], goal: float = 0.97) -> Case:
    def inputs(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        model = shell(build, False)
        values = [p.detach().to(device, dtype) for p in model.parameters()]
        buffers = [b.to(device, dtype) if b.is_floating_point() else b.to(device) for b in model.buffers()]
        return torch.rand(shape, device=device).to(dtype), values, buffers

    def work(size: int) -> Work:
        values = sum(p.numel() for p in shell(build, False).parameters()) + torch.Size(shape).numel()
        return Work({"fwdbwd": 3 * values * size})

    return Case(
        name=f"{name} {'x'.join(map(str, shape))}",
        inputs=inputs,
        ours=step(build, True),
        baselines={"eager": step(build, False)},
        work=work,
        modes=("fwdbwd",),
        grad=(1,),
        goals={"fwdbwd": goal},
        gradients_as_one=True,
        devices=("cpu",),
    )


IMAGE = (2, 3, 128, 128)
LARGE = (2, 3, 256, 256)
CASES = [
    case("deeplabv3plus resnet34", smp("DeepLabV3Plus", encoder_name="resnet34", decoder_aspp_dropout=0.0), LARGE, 1.15),
    case(
        "deeplabv3plus resnet50",
        smp("DeepLabV3Plus", encoder_name="resnet50", decoder_aspp_dropout=0.0),
        (2, 3, 192, 192),
        1.15,
    ),
    case(
        "deeplabv3plus mobilenet_v2", smp("DeepLabV3Plus", encoder_name="mobilenet_v2", decoder_aspp_dropout=0.0), LARGE, 1.15
    ),
    case("maskrcnn_resnet50_fpn", lambda: Detector(128, 2), (2, 3, 128, 128), 1.15),
    *(case(f"{name.lower()} resnet34", smp(name, encoder_name="resnet34"), IMAGE) for name in ("Unet", "Linknet")),
    case("unetplusplus resnet34", smp("UnetPlusPlus", encoder_name="resnet34"), (1, 3, 128, 128)),
    case("fpn resnet34", smp("FPN", encoder_name="resnet34", decoder_dropout=0.0), IMAGE),
    case(
        "pspnet resnet34",
        # Its decoder takes the maps of the first two stages.
        smp("PSPNet", ("layer3", "layer4"), encoder_name="resnet34", psp_dropout=0.0),
        LARGE,
    ),
    case("segformer mit_b0", smp("Segformer", encoder_name="mit_b0"), IMAGE),
    *(case(name, torchvision(name), (2, 3, 81, 81)) for name in ("fcn_resnet50", "deeplabv3_resnet50")),
    case(
        "monai unet", monai("UNet", channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2), (4, 1, 128, 128)
    ),
    case("monai segresnet", monai("SegResNet", init_filters=16), (2, 1, 128, 128)),
]
