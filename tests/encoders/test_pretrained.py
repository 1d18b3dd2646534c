"""Networks of timm: what they look at, where their weights come from, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import Encoder
from pipeline.encoders import pretrained, weights_files
from pipeline.encoders.base import fixed
from pipeline.encoders.pretrained import Pretrained
from pipeline.errors import ConfigError, DataError

LITE0 = Encoder(name="tf_efficientnet_lite0.in1k", size=32)
SHAPE = (3, 16, 16)


def images(n: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(name: str, **settings: int) -> Encoder:
    """The encoder of this name, with weights that are drawn here and saved."""
    torch.manual_seed(0)
    save_file(timm.create_model(name, **settings).state_dict(), f"{name}.safetensors")
    return Encoder(name=name, weights=f"{name}.safetensors")


def test_the_packages_weights_are_converted_once_and_are_those_of_imagenet() -> None:
    encoder = Pretrained.made((3, 64, 64), Encoder(name="tf_efficientnet_lite0"))
    assert (encoder.size, encoder.interpolation) == (224, "bicubic")
    assert (encoder.origin.trained_on, encoder.origin.licence) == ("ImageNet-1k", "apache-2.0")
    [file] = Path(".tailforge/encoders").iterdir()
    tensors, before = load_file(file), file.stat().st_mtime_ns
    assert len(tensors) == len(timm.create_model("tf_efficientnet_lite0").state_dict()) and file.samefile(encoder.file)
    assert all(bool((value >= 0).all()) for name, value in tensors.items() if name.endswith("running_var"))
    Pretrained.made((3, 64, 64), LITE0)
    assert file.stat().st_mtime_ns == before


def test_its_features_are_those_of_timm() -> None:
    """In float32 and step by step: resized, normalised; what the classifier is handed, then the inner maps."""
    encoder, x = Pretrained.made(SHAPE, LITE0), torch.from_numpy(images())
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict({k: v for k, v in load_file(encoder.file).items() if not k.startswith("classifier")})
    large = torch.nn.functional.interpolate(x.float(), (32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    maps = list[torch.Tensor]()
    for i in (1, 2, 4, 6):  # the last of 16, 8, 4 and 2 pixels less
        network.blocks[i].register_forward_hook(lambda _module, _given, out: maps.append(out))
    with torch.inference_mode():
        parts = [network((large / 255 - 0.5) / 0.5)]
    for part in maps:
        parts += [part.mean((2, 3)), part.std((2, 3), correction=0)]
    found, start = encoder.features(x.numpy()), 0
    assert found.shape == (6, 1280 + 2 * (24 + 40 + 112 + 320))
    for part in parts:
        expected = part - part.mean(1, keepdim=True)
        expected = (expected / expected.norm(dim=1, keepdim=True).clamp(min=pretrained.SHORTEST)).numpy()
        own = found[:, start : start + part.shape[1]]
        assert np.linalg.norm(own - expected) < 0.1 * np.linalg.norm(expected) + 1e-6  # the error of bf16
        start += part.shape[1]


def test_folding_changes_rounding_alone_and_is_left_where_it_would_change_more() -> None:
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    for name in ("tf_efficientnet_lite0", "resnet10t"):
        network = timm.create_model(name, num_classes=0).eval()
        with torch.inference_mode():
            for part in network.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.running_mean.add_(0.1)
                    part.running_var.mul_(1.3)
            made = pretrained.folded(network, 32)
            torch.testing.assert_close(made(x), network(x), rtol=1e-3, atol=1e-4)
        left = sum(isinstance(part, torch.nn.BatchNorm2d) for part in made.modules())
        assert left < sum(isinstance(part, torch.nn.BatchNorm2d) for part in network.modules()) / 2

    class Elsewhere(torch.nn.Module):
        """A normalisation that stands after a convolution and is fed by something else."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
            self.norm.running_mean.add_(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).flatten(1) + self.conv(x).square().flatten(1)

    odd = Elsewhere().eval()
    assert pretrained.folded(odd, 32) is odd


def test_a_grey_image_is_seen_as_one_of_three_equal_channels() -> None:
    grey = images()[:, :1]
    alone = Pretrained.made((1, 16, 16), LITE0).features(grey)
    np.testing.assert_array_equal(alone, Pretrained.made(SHAPE, LITE0).features(grey.repeat(3, 1)))


def test_any_architecture_has_its_own_size_and_statistics() -> None:
    encoder = Pretrained.made(SHAPE, drawn("resnet10t").model_copy(update={"size": 32}))
    assert encoder.features(images()).shape == (6, 512 + 2 * (64 + 128 + 256 + 512))
    assert encoder.normalisation.mean == timm.get_pretrained_cfg("resnet10t").mean
    transformer = drawn("vit_tiny_patch16_224")
    full, small = (Pretrained.made(SHAPE, transformer.model_copy(update={"size": size})) for size in (0, 48))
    assert (full.size, small.size) == (224, 48) and small.features(images(2)).shape == (2, 9 * 192)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Encoder(), r"encoder\.name=none.*set encoder\.name=tf_efficientnet_lite0\.in1k"),
        (Encoder(name="tf_efficientnet_lite9"), r"encoder\.name=tf_efficientnet_lite9; .*did you mean tf_efficientnet_lite"),
        (Encoder(name="resnet18.nosuch"), r"encoder\.name=resnet18\.nosuch; .*did you mean resnet18\."),
        (Encoder(name="resnet18"), r"weights of resnet18\..* not on this machine.*set encoder\.weights"),
        (Encoder(name="resnet18", weights="absent.safetensors"), r"encoder\.weights=absent\.safetensors does not exist"),
        (Encoder(name="resnet18", weights="weights.pth"), r"encoder\.weights=weights\.pth is no safetensors file"),
    ],
)
def test_what_is_not_to_be_had_is_one_line(settings: Encoder, said: str) -> None:
    Path("weights.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=said) as caught:
        fixed("pretrained", SHAPE, settings, "judges.encoder")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_one_line() -> None:
    other, own = drawn("resnet10t"), drawn("resnet18")
    save_file({"head.weight": torch.zeros(1)}, "few.safetensors")
    Path("torn.safetensors").write_bytes(b"torn")
    whole = load_file(own.weights)
    save_file({k: v for k, v in whole.items() if k != "layer1.0.conv1.weight"}, "lacking.safetensors")
    for file in (other.weights, "few.safetensors", "torn.safetensors", "lacking.safetensors"):
        encoder = Pretrained.made(SHAPE, own.model_copy(update={"weights": file}))
        with pytest.raises(DataError, match=f"{file}.*expected") as caught:
            encoder.features(images(1))
        assert "\n" not in str(caught.value)


def test_a_package_with_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models").mkdir()
    Path(weights_files.PICKLE).write_bytes(b"another")
    monkeypatch.setattr(weights_files, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=["."]))
    with pytest.raises(DataError, match="SHA-256"):
        Pretrained.made(SHAPE, LITE0)
    assert not weights_files.CONVERTED.exists()


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'tailforge\[encoder\]', or set encoder\.name=none"):
        Pretrained.made(SHAPE, LITE0)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("in1k", "ImageNet-1k"),
        ("augreg_in21k_ft_in1k", "ImageNet-21k, then ImageNet-1k"),
        ("lvd142m", "LVD-142M"),
        ("mine", "unknown: timm calls these weights mine"),
        ("", "unknown"),
    ],
)
def test_what_it_was_trained_on_is_told_by_its_tag(tag: str, said: str) -> None:
    assert said in pretrained.trained_on(SimpleNamespace(tag=tag))  # type: ignore[arg-type]
