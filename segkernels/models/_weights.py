"""Weights: a file or the member of an enum, its keys, and the model that they are for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn

from segkernels.models._preprocessing import Preprocessing

StateDict = dict[str, torch.Tensor]

_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
#: File name to the first digits of its SHA-256, for all members of all enums.
_published: dict[str, str] = {}


class _HasURL(Protocol):
    @property
    def url(self) -> str: ...


#: A path of a ``.pth`` or ``.safetensors`` file, or a member of an enum that has a ``url``: ours or torchvision's.
Weights = str | os.PathLike[str] | _HasURL


@dataclass(frozen=True)
class WeightsEntry:
    """Value of a member of a :class:`WeightsEnum`."""

    url: str
    meta: Mapping[str, Any]
    preprocessing: Preprocessing


class WeightsEnum(Enum):
    """Published weights of one model. A member has what torchvision's has: ``url``, ``transforms()`` and ``meta``.

    ``meta`` holds ``categories`` (background first; empty for classifiers, whose last layer an encoder leaves out),
    ``num_params`` and ``metrics``: the published figures.
    """

    def __init__(self, entry: WeightsEntry) -> None:
        _published[_file_name(entry.url)] = self.sha256

    @property
    def url(self) -> str:
        return self.value.url

    @property
    def sha256(self) -> str:
        """First digits of the file's SHA-256, which its name carries."""
        return _hash_in(self.value.url)

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.value.meta

    def transforms(self) -> Preprocessing:
        """What the model was trained to see: a callable from an image to its input."""
        return self.value.preprocessing

    def get_state_dict(self, progress: bool = True) -> StateDict:
        """Downloads the file unless it is there, checks its hash and reads it."""
        return read_state_dict(self, progress)


def _file_name(url: str) -> str:
    return os.path.basename(urlparse(url).path)


def _hash_in(url: str) -> str:
    found = _HASH.search(_file_name(url))
    return found.group(1) if found else ""


def read_state_dict(weights: Weights, progress: bool = True) -> StateDict:
    """A state dict on the CPU, from a file or from where an enum's member points to.

    Files are read with ``weights_only``, so that they cannot run code. A file that has the name of published weights must have
    their SHA-256 too.

    Args:
        weights: path, or member of an enum, whose file is downloaded into ``torch.hub.get_dir()/checkpoints`` if need be.
        progress: show a progress bar while it is downloaded.

    Raises:
        FileNotFoundError: where there is no such file.
        ImportError: for a ``.safetensors`` file without safetensors.
        RuntimeError: where the download fails.
        ValueError: for a truncated or changed file, and for one that is not a state dict.
    """
    path = _path_of(weights, progress)
    expected = _published.get(path.name, "") or ("" if isinstance(weights, str | os.PathLike) else _hash_in(weights.url))
    if expected and not _sha256(path).startswith(expected):
        raise ValueError(f"weights: {path} is truncated or changed: its SHA-256 does not start with {expected}")
    state = _read(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        inner = [key for key, value in state.items() if isinstance(value, Mapping)] if isinstance(state, Mapping) else []
        hint = f"; save what its entry {inner[0]!r} holds" if inner else ""
        raise ValueError(f"weights: {path} is not a state dict (names to tensors){hint}")
    return dict(state)


def _path_of(weights: Weights, progress: bool) -> Path:
    if isinstance(weights, str | os.PathLike):
        return Path(weights).expanduser()
    url = getattr(weights, "url", None)
    if not isinstance(url, str):
        raise TypeError(f"weights: expected a path or a member of a weights enum, got {type(weights).__name__}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(url)
    if not path.exists():
        _download(url, path, progress)
    return path


def _download(url: str, path: Path, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Into a temporary file beside it, moved once its hash is right.
        torch.hub.download_url_to_file(url, str(path), _hash_in(url) or None, progress)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise RuntimeError(f"weights: cannot download {url} ({reason}); save that file as {path}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}")
    if path.suffix != ".safetensors":
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch's own message may be a page long, and its type depends on where the file breaks off.
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"weights: {path} is not a file that torch.load reads with weights_only=True: {reason}"
            ) from error
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(f"weights: {path} needs safetensors: pip install 'segkernels[safetensors]'") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is not a safetensors file: {error}") from error


def check_member(weights: Weights | None, model: str, num_classes: int | None = None) -> None:
    """Raises a ValueError for a member of another model's enum, or with other classes, before anything is downloaded.

    Args:
        weights: as the user gave them; a path says nothing yet.
        model: name of the builder; ``FCN_ResNet50_Weights`` is for ``fcn_resnet50``.
        num_classes: channels of the logits, or None for an encoder.
    """
    if not isinstance(weights, Enum):
        return
    expected = type(weights).__name__.removesuffix("_Weights").lower()
    if expected != model:
        raise ValueError(f"weights: expected a path or a member of the enum for {model}, got {weights}, for {expected}")
    categories = getattr(weights, "meta", {}).get("categories")
    if num_classes is not None and categories and len(categories) != num_classes:
        raise ValueError(f"num_classes: expected {len(categories)} for {weights}, got {num_classes}")


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: object) -> None:
    """Copies a state dict into a model, strictly, and only once all names and shapes are known to fit.

    Raises:
        ValueError: with ``source`` and the first names that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    # Files from before BatchNorm counted batches lack the counters, and frozen norms do not have them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        raise ValueError(f"weights: {source} is not for this {type(model).__name__} of {len(own)} tensors: {'; '.join(parts)}")
    wrong = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    if wrong:
        shapes = [f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}" for key in wrong]
        only_rows = all(state[key].shape[1:] == own[key].shape[1:] for key in wrong)
        hint = " (another num_classes?)" if only_rows else ""
        raise ValueError(f"weights: {source} has other shapes than this {type(model).__name__}: {_some(shapes)}{hint}")
    model.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_weights(
    model: nn.Module,
    weights: Weights | None,
    progress: bool = True,
    convert: Callable[[StateDict], StateDict] | None = None,
) -> None:
    """Loads a state dict strictly into a model; None leaves the model as it was initialised.

    Args:
        model: what to load into; untouched if anything does not fit.
        weights, progress: see :func:`read_state_dict`.
        convert: from the file's keys to the model's, where they differ.

    Raises:
        ValueError: see :func:`read_state_dict` and :func:`load_state`.
    """
    if weights is not None:
        state = read_state_dict(weights, progress)
        load_state(model, state if convert is None else convert(state), weights)


def load_backbone(
    backbone: nn.Module,
    weights: Weights | None,
    progress: bool = True,
    head: tuple[str, ...] = ("fc.",),
    prefix: str = "",
    name: str | None = None,
) -> None:
    """Loads a classifier's state dict into its encoder, which has all of its keys but those of its ``head``.

    Args:
        backbone: the encoder; untouched if anything does not fit.
        weights, progress: see :func:`read_state_dict`; None leaves the encoder as it was initialised.
        head: how the keys start that the encoder leaves out.
        prefix: what the encoder's keys start with in the classifier, for example ``"features."``.
        name: of the classifier, so that a member of another's enum is refused before anything is downloaded.
    """
    if name is not None:
        check_member(weights, name)

    def encoder(state: StateDict) -> StateDict:
        return {key.removeprefix(prefix): value for key, value in state.items() if not key.startswith(head)}

    load_weights(backbone, weights, progress, encoder)
