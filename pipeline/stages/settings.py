"""settings: params.yaml and the defaults of what it does not say -> data/settings.json.

DVC knows neither the defaults nor the packages that families may come from. The other stages name their settings in this file,
so that a changed default, or another version of such a package, reruns what it touches and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.encoders.base import fixed
from pipeline.generators import registry
from pipeline.registry import GENERATORS


def run(params: Params, out: Path) -> None:
    """Write the file `out`: the shared sections as params.yaml has them but `engine`, which decides no result; and

    families        {name: its section} of the families in use
    code            {name: hash of the code that defines it} of the same
    encoder_origin  what the encoder was trained on, the licence and the hash of its weights; null where none is named

    Raises ConfigError where the encoder's weights are not to be had.
    """
    found = registry.resolved(params).model_dump(mode="json", by_alias=True, exclude={"engine"})
    code = {name: GENERATORS.code(name) for name in found["families"]}
    work.write_json(out, found | {"code": code, "encoder_origin": _origin(params)})


def _origin(params: Params) -> dict[str, str] | None:
    if params.encoder.name == "none":
        return None
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    return asdict(fixed("pretrained", shape, params.encoder, "encoder.name").origin)
