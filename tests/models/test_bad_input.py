"""Every model: weights that do not fit and images of another rank, each an error that says what was expected and what came.

On the meta device, where the largest model costs nothing: all of it is found before a value is touched.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from segkernels.models import get_model, list_models

SEMANTIC = [name for name in list_models() if not name.startswith("maskrcnn")]


def build(name: str, **config: object) -> nn.Module:
    with torch.device("meta"):
        return get_model(name, **{"num_classes": 4, **config})


def error_of(name: str, path: Path, **config: object) -> str:
    with pytest.raises(ValueError) as error:
        build(name, weights=path, **config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", list_models())
def test_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = build(name).state_dict()
    first, last = next(iter(state)), list(state)[-1]

    torch.save({"module.weight": torch.ones(3)}, path)  # of another architecture
    message = error_of(name, path)
    assert f"{path} is not for this " in message and f"missing {first}" in message
    assert message.endswith("; unexpected module.weight")

    torch.save({key: value for key, value in state.items() if key != last} | {"more.weight": torch.ones(3)}, path)
    assert re.search(
        rf"is not for this \w+ of \d+ tensors: missing {re.escape(last)}; unexpected more.weight$", error_of(name, path)
    )

    torch.save(state, path)
    message = error_of(name, path, num_classes=3)
    assert f"{path} has other shapes than this " in message and "(another num_classes?)" in message
    assert re.search(r"\[4\b.* instead of \[3\b", message)

    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path} is not a file that torch.load reads" in error_of(name, path)


@pytest.mark.parametrize("name", SEMANTIC)
@pytest.mark.parametrize("shape", [(3, 64, 64), (64, 64), (1, 1, 3, 64, 64), (1, 2, 64, 64), (1, 3, 64, 0)], ids=str)
def test_images(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        build(name)(torch.empty(shape, device="meta"))
    message = str(error.value)
    assert message.startswith("input: expected [N, 3, H, W] with H and W of at least ") and message.endswith(str(list(shape)))
