"""SegNet on these operators, with a byte an index, against torch's pooling and unpooling with eight."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F

from benchmarks.models._case import model_case
from segkernels.models import SegNet
from segkernels.nn import MaxPool2d


class TorchSegNet(SegNet):
    """The same layers with torch's pooling."""

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        x = input
        pooled = []
        for layer in self.encoder:
            if isinstance(layer, MaxPool2d):
                size = x.shape[2:]
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                pooled.append((indices, size))
            else:
                x = layer(x)
        for stage in self.decoder:
            indices, size = pooled.pop()
            x = stage(F.max_unpool2d(x, indices, 2, output_size=list(size)))
        return OrderedDict(out=x)


CASES = [model_case("1x3x224x224", SegNet, {"torch.nn": TorchSegNet}, (1, 3, 224, 224))]
