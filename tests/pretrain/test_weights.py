"""The encoder artefact: the same features after a round trip, and a clear refusal of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from medloom.data.errors import CheckpointError, MedloomError
from medloom.pretrain.artefact import read_record
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.transfer import adapt_channels
from medloom.pretrain.weights import load_encoder, load_into, save_encoder
from safetensors.torch import load_file, save_file

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, **SMALL},
    "eva": {"name": "vit", "model": "vit_small_patch16_dinov3", **SMALL},
    "convnext": {"name": "convnet", "model": "convnext_atto"},
    "resnet": {"name": "convnet", "model": "resnet18", "in_channels": 1},
    "vit3d": {"name": "vit3d", "patch_size": [4, 16, 16], "registers": 1, **SMALL},
}
PROVENANCE = {"training": {"steps": 7, "datasets": ["a", "b"]}, "held_out": {"rules": []}}


def make(key: str, seed: int = 0) -> Encoder:
    """An encoder whose every tensor, norms and buffers included, is random."""
    torch.manual_seed(seed)
    encoder = build_encoder(CONFIGS[key]).eval()
    for tensor in encoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1 + 0.05)
    return encoder


def image_for(encoder: Encoder, channels: int | None = None) -> torch.Tensor:
    """Two random images of 64 pixels a side (8 deep)."""
    spatial = (64, 64) if encoder.ndim == 2 else (8, 64, 64)
    return torch.randn(2, channels or encoder.in_channels, *spatial)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the artefact of `vit`."""
    save_encoder(tmp_path / "run", make("vit"), PROVENANCE)
    return tmp_path / "run"


@pytest.mark.parametrize("key", CONFIGS)
@torch.no_grad()
def test_features_are_identical_after_a_round_trip(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    path = save_encoder(tmp_path / "run", encoder, PROVENANCE)
    x = image_for(encoder)
    for source in (path, path.parent, str(path.parent), path.with_suffix(".json")):
        loaded, report = load_encoder(source)
        a, b = encoder(x, pyramid=True), loaded.eval()(x, pyramid=True)
        assert torch.equal(a.pooled, b.pooled) and torch.equal(a.tokens, b.tokens)
        assert report.missing == report.unexpected == report.adapted == []
        assert len(report.loaded) == len(encoder.state_dict())
        assert report.record["training"]["steps"] == 7
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".py" and p.name != "config.json") == [
        "encoder.json",
        "encoder.safetensors",
        "reference.npz",
    ]


def test_the_record_says_what_the_encoder_is(saved: Path) -> None:
    record = read_record(saved / "encoder.json")
    assert record["architecture"]["name"] == "vit" and record["architecture"]["args"]["depth"] == 2
    assert (record["ndim"], record["patch_size"], record["embed_dim"], record["in_channels"]) == (
        2,
        [16, 16],
        48,
        3,
    )
    assert record["bytes"] == (saved / "encoder.safetensors").stat().st_size
    assert record["parameters"] == sum(p.numel() for p in make("vit").parameters())
    assert record["held_out"] == {"rules": []}


def test_saving_the_same_encoder_gives_the_same_bytes(tmp_path: Path, saved: Path) -> None:
    again = save_encoder(tmp_path / "again", make("vit"), PROVENANCE)
    assert again.read_bytes() == (saved / "encoder.safetensors").read_bytes()
    assert (again.parent / "encoder.json").read_bytes() == (saved / "encoder.json").read_bytes()


def test_provenance_cannot_forge_the_architecture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256"):
        save_encoder(tmp_path, make("vit"), {"sha256": "0"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["vit", "eva", "convnext", "resnet"])
@torch.no_grad()
def test_plain_timm_reads_2d_encoders(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    save_encoder(tmp_path / "run", encoder, PROVENANCE)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    x = image_for(encoder)
    assert torch.equal(model(x), encoder(x).pooled)
    assert model.pretrained_cfg["input_size"][0] == encoder.in_channels
    classifier = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True, num_classes=5).eval()
    assert classifier(x).shape == (2, 5)
    wider = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True, in_chans=2).eval()
    assert wider(image_for(encoder, 2)).shape == (2, encoder.embed_dim)


def test_a_changed_byte_is_refused(saved: Path) -> None:
    path = saved / "encoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        load_encoder(saved)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, size: int) -> None:
    path = saved / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: \d+ bytes, .*truncated"):
        load_encoder(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "architecture": {}}', '{"format": 1}'])
def test_a_record_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "encoder.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"encoder\.json"):
        load_encoder(saved)


def test_weights_without_their_record_and_records_without_weights_are_refused(saved: Path) -> None:
    (saved / "encoder.safetensors").rename(saved / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: missing"):
        load_encoder(saved)
    with pytest.raises(CheckpointError, match=r"other\.json: missing"):
        load_encoder(saved / "other.safetensors")


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of an artefact and make its record agree."""
    import hashlib

    path = folder / "encoder.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    record = json.loads((folder / "encoder.json").read_text())
    record["bytes"] = path.stat().st_size
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "encoder.json").write_text(json.dumps(record))


def test_an_unused_tensor_is_refused_unless_told_otherwise(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.update({"blocks.9.extra": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"1 unused \(blocks\.9\.extra\)"):
        load_encoder(saved)
    _, report = load_encoder(saved, strict=False)
    assert report.unexpected == ["blocks.9.extra"] and report.missing == []


def test_a_missing_tensor_is_refused_unless_told_otherwise(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.pop("norm.bias"))
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.norm\.bias\)"):
        load_encoder(saved)
    encoder, report = load_encoder(saved, strict=False)
    assert report.missing == ["model.norm.bias"]
    assert f"{len(encoder.state_dict()) - 1} of {len(encoder.state_dict())} tensors" in str(report)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.update({"norm.bias": torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"norm\.bias \[5\], the encoder has \[48\]"):
        load_encoder(saved)


@pytest.mark.parametrize("key", ["vit", "convnext"])
@torch.no_grad()
def test_three_channels_to_one_is_a_grey_image_as_colour(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    save_encoder(tmp_path, encoder, {})
    grey, report = load_encoder(tmp_path, in_channels=1)
    x = image_for(encoder, 1)
    assert grey.in_channels == 1 and len(report.adapted) == 1 and "3 -> 1" in str(report)
    assert torch.allclose(
        grey.eval()(x).pooled, encoder(x.expand(-1, 3, -1, -1)).pooled, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("key", ["resnet", "vit3d"])
@torch.no_grad()
def test_one_channel_to_four_keeps_the_response_to_equal_channels(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    save_encoder(tmp_path, encoder, {})
    four, report = load_encoder(tmp_path, in_channels=4)
    x = image_for(encoder)
    same = x.expand(-1, 4, *x.shape[2:])
    assert torch.allclose(four.eval()(same).pooled, encoder(x).pooled, rtol=1e-4, atol=1e-5)
    assert "1 -> 4" in report.adapted[0]


def test_channels_repeat_in_turn() -> None:
    weight = torch.randn(2, 3, 4, 4)
    assert torch.equal(adapt_channels(weight, 3), weight)
    five = adapt_channels(weight, 5)
    assert torch.allclose(five, weight[:, [0, 1, 2, 0, 1]] * 3 / 5)
    assert torch.allclose(adapt_channels(weight, 2), weight[:, :2] * 1.5)


@torch.no_grad()
def test_random_gives_the_same_architecture_with_fresh_weights(saved: Path) -> None:
    before = torch.random.get_rng_state()
    a, report = load_encoder(f"random:{saved}", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    b, _ = load_encoder(f"random:{saved}", seed=1)
    c, _ = load_encoder(f"random:{saved}", seed=2)
    name = "model.blocks.0.attn.qkv.weight"
    assert a.config == load_encoder(saved)[0].config
    assert torch.equal(a.get_parameter(name), b.get_parameter(name))
    assert not torch.equal(a.get_parameter(name), c.get_parameter(name))
    assert not torch.equal(a.get_parameter(name), make("vit").get_parameter(name))
    assert report.loaded == [] and len(report.missing) == len(a.state_dict())
    assert report.record["training"]["steps"] == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{tmp}/rum", "did you mean run"),
        ("{tmp}/none/x", "does not exist either"),
        ("{tmp}", "holds neither encoder.json nor last.ckpt"),
        ("{tmp}/notes.txt", "expected a folder, .safetensors or .ckpt"),
        ("timm:vit_tiny_patch16_225", "did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "did you mean timm:vit_tiny_patch16_224"),
    ],
)
def test_wrong_names_are_refused_with_the_near_ones(name: str, message: str, saved: Path) -> None:
    (saved.parent / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(name.format(tmp=saved.parent))


def checkpoint(folder: Path, encoder: Encoder, key: str, prefix: str = "encoder.") -> Path:
    """A training checkpoint as the Lightning module writes it."""
    folder.mkdir()
    state = {f"{prefix}{name}": tensor for name, tensor in encoder.state_dict().items()}
    path = folder / "last.ckpt"
    ours = {"encoder": CONFIGS[key], "step": 3}
    torch.save({"state_dict": {**state, "objective.norm.weight": torch.ones(2)}, "medloom": ours}, path)
    return path


@pytest.mark.parametrize("prefix", ["encoder.", "encoder._orig_mod."])
@pytest.mark.parametrize("key", ["vit", "vit3d"])
@torch.no_grad()
def test_a_training_checkpoint_is_read(key: str, prefix: str, tmp_path: Path) -> None:
    encoder = make(key)
    path = checkpoint(tmp_path / "run", encoder, key, prefix)
    x = image_for(encoder)
    for source in (path, path.parent):
        assert torch.equal(load_encoder(source)[0].eval()(x).pooled, encoder(x).pooled)
    fresh, _ = load_encoder(f"random:{path}")
    assert not torch.equal(fresh.eval()(x).pooled, encoder(x).pooled)


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run", make("vit"), "vit")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: .*previous\.ckpt"):
        load_encoder(path)
    torch.save({"model": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of `medloom pretrain`"):
        load_encoder(path)


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_a_checkpoint_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "medloom": {"encoder": {}}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="nothing is unpickled"):
        load_encoder(tmp_path / "evil.ckpt")
    assert not (tmp_path / "pwned").exists()


@torch.no_grad()
def test_load_into_adapts_channels_and_the_grid_of_positions(saved: Path) -> None:
    target = build_encoder({**CONFIGS["vit"], "img_size": 96, "in_channels": 1}).eval()
    report = load_into(target, saved)
    assert len(report.adapted) == 2 and "(4, 4) -> (6, 6)" in str(report.adapted)
    source = load_encoder(saved)[0].eval()
    x = torch.randn(1, 1, 96, 96)
    assert torch.allclose(target(x).pooled, source(x.expand(-1, 3, -1, -1)).pooled, rtol=1e-4, atol=1e-5)


def test_load_into_another_architecture_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="another architecture"):
        load_into(build_encoder({**CONFIGS["vit"], "depth": 3}), saved)
    with pytest.raises(CheckpointError, match=r"another architecture.*set encoder\.layer_scale"):
        load_into(build_encoder({**CONFIGS["vit"], "depth": 1}), make_scaled(saved.parent / "scaled"))


def make_scaled(folder: Path) -> Path:
    """An artefact of the same network with layer scales."""
    save_encoder(folder, build_encoder({**CONFIGS["vit"], "kwargs": {"init_values": 1e-5}}), PROVENANCE)
    return folder


def test_timm_weights_that_are_out_of_reach_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MedloomError, match=r"no network.*online"):
        load_encoder("timm:resnet18")
    fresh, _ = load_encoder("random:timm:resnet18", in_channels=1)
    assert fresh.config.name == "convnet" and fresh.in_channels == 1
    assert load_encoder("random:timm:vit_tiny_patch16_224")[0].config.name == "vit"
