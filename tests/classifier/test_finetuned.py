"""The mode `finetune`: the encoder's own network learns, whole or by changes of low rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.arms import Arm, TrainingData, recipes
from pipeline.classifier import finetuned, networks, train
from pipeline.classifier.finetuned import Finetuned
from pipeline.config import ClassifierInMode, Encoder, Params
from pipeline.encoders.pretrained import Pretrained
from pipeline.errors import ConfigError

LITE0 = {"name": "tf_efficientnet_lite0.in1k", "size": 32}
SHORT = {"steps": 12, "batch_images": 8, "lr": 0.003, "dropout": 0.0}
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(encoder: dict[str, object] = LITE0, **own: object) -> ClassifierInMode:
    return Params.model_validate({"encoder": encoder, "finetune": SHORT | own}).in_mode("finetune")


def transformer(name: str = "vit_tiny_patch16_224") -> dict[str, object]:
    """The encoder of this name, with weights that are drawn here and saved."""
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), f"{name}.safetensors")
    return {"name": name, "weights": f"{name}.safetensors", "size": 32}


def two_colours(n: int = 10) -> TrainingData:
    """Red images and blue ones, with noise."""
    images = np.random.default_rng(0).integers(0, 90, (2 * n, *SHAPE), dtype=np.uint8)
    images[:n, 0] += 150
    images[n:, 2] += 150
    y, none = np.repeat([0, 1], n), np.zeros(0, np.int64)
    return TrainingData(2, images, y, images[:0], none, none.astype(bool), none, np.zeros(1, np.int64))


def fitted(config: ClassifierInMode, arm: str = "real", **options: object) -> torch.nn.Module:
    plan = Arm(arm, recipes(config)[arm]).build(two_colours(), 0)
    return train.fit(plan, config, 0, **({"progress": lambda _: None} | options))  # type: ignore[arg-type]


def test_it_starts_from_the_pretrained_weights_and_its_features_are_the_encoders() -> None:
    config, images = settings(), two_colours().images
    network = train.initial(config, SHAPE, 2, 0)
    assert isinstance(network, Finetuned) and networks.mode(network) == "finetune"
    encoder = Pretrained.made(SHAPE, config.encoder)
    with torch.inference_mode():
        found = network.body(network.look.prepared(torch.from_numpy(images)))
    expected = encoder.features(images)[:, :1280]
    found = torch.nn.functional.normalize(found - found.mean(1, keepdim=True)).numpy()
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)  # the error of bf16


def test_the_whole_network_learns_and_early_layers_the_least() -> None:
    config = settings()
    before, network = train.initial(config, SHAPE, 2, 0), fitted(config)
    p = train.predict(network, torch.from_numpy(two_colours().images))
    assert (p.argmax(1) == two_colours().targets).all()
    start, after = before.state_dict(), network.state_dict()
    moved = {name: float((after[name] - value).abs().mean() / value.abs().mean()) for name, value in start.items()}
    assert set(moved) == {name for name, _ in network.named_parameters()} and all(value > 0 for value in moved.values())
    assert moved["body.conv_stem.weight"] < 0.2 * moved["body.conv_head.weight"]
    shares = finetuned.learning_rates(network, 0.8)
    assert "head.weight" not in shares and shares["body.conv_stem.weight"] < shares["body.blocks.3.0.conv_dw.weight"] < 1.0


def test_low_rank_changes_attention_and_the_last_layer_alone() -> None:
    config = settings(transformer(), lora_rank=2)
    before, network = train.initial(config, SHAPE, 2, 0), fitted(config)
    start = finetuned.stored(before)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, start[name].float())}
    assert {name for name in moved if not name.startswith("head.")} == {
        name for name in start if name.endswith((".down", ".up")) and ".attn." in name
    }
    assert len(moved) == 2 + 2 * 2 * 12  # the last layer; A and B of qkv and proj of 12 blocks
    fresh = train.initial(settings(transformer()), SHAPE, 2, 0)
    x = torch.from_numpy(two_colours().images).float() / 127.5 - 1
    with torch.inference_mode():  # B is zero at first
        seen = before.look.prepared(x)
        torch.testing.assert_close(before.body(seen), fresh.body(seen))


def test_a_network_without_attention_has_no_low_rank() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.lora_rank=2: tf_efficientnet_lite0\.in1k has no attention.*lora_rank: 0"):
        train.initial(settings(lora_rank=2), SHAPE, 2, 0)


@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_saved_is_what_was_scored(rank: int) -> None:
    config = settings(transformer(), lora_rank=rank)
    network = fitted(config)
    train.save(network, Path("a.safetensors"), config, SHAPE, 2)
    assert all(value.dtype == torch.float16 for value in load_file("a.safetensors").values())
    images = torch.from_numpy(two_colours().images)
    np.testing.assert_array_equal(train.predict(train.load(Path("a.safetensors")), images), train.predict(network, images))


def test_counts_and_variances_are_stored_as_they_are() -> None:
    """float16 holds neither a count above 65,504 nor a variance of 1e-9."""
    network = train.initial(settings(), SHAPE, 2, 0)
    network.register_buffer("seen", torch.tensor(70_001))
    network.register_buffer("variance", torch.tensor([1e-9, 1e9]))
    found = finetuned.stored(network)
    assert found["seen"].dtype == torch.int64 and torch.equal(found["variance"], network.get_buffer("variance"))
    assert found["head.weight"].dtype == torch.float16


def test_a_prediction_is_a_function_of_its_own_image() -> None:
    network, images = fitted(settings(), "augment"), torch.from_numpy(two_colours().images)
    alone = np.concatenate([train.predict(network, images[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(alone, train.predict(network, images)[:4], atol=1e-4)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = settings(), list[int]()
    whole = fitted(config, "crt").state_dict()  # two phases
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)

    def stop(images: int) -> None:
        seen.append(images)
        if len(seen) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(config, "crt", folder=Path("kept"), progress=stop)
    rest = fitted(config, "crt", folder=Path("kept")).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in rest.items())


def test_arms_are_paired() -> None:
    """Same seed, same last layer and same order of draws, whichever network was built before."""
    first, again, other = (train.initial(settings(), SHAPE, 2, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    finetuned._pretrained.cache_clear()
    assert torch.equal(train.initial(settings(), SHAPE, 2, 3).state_dict()["head.weight"], first["head.weight"])


def test_it_looks_at_its_own_size() -> None:
    params = Params.model_validate({"encoder": LITE0, "finetune": {"size": 48}})
    assert params.in_mode("finetune").encoder == Encoder(name="tf_efficientnet_lite0.in1k", size=48)
    assert params.in_mode("frozen").encoder == Encoder()
    network = train.initial(params.in_mode("finetune"), SHAPE, 2, 0)
    assert isinstance(network, Finetuned) and network.look.size == 48
