"""Autoencoders: shapes, files, and the objects that a configuration names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import vqkit
from vqkit.models import VQVAE, Convolutional, ModelConfig, Patchwise
from vqkit.models.objects import SLOTS, parse_object
from vqkit.models.storage import replace_file
from vqkit.quantizers import ChannelsFirst

SMALL = ModelConfig(architecture=Patchwise(hidden=8), dim=4, codebook_size=16, start=vqkit.Normal())
# Every class that a configuration may name, with values that are not its defaults.
OBJECTS: dict[str, list[Any]] = {
    "architecture": [
        Patchwise(stride=2, hidden=6, encoder_blocks=0, decoder_blocks=1),
        Convolutional(stride=8, hidden=6, residual=2, blocks=1),
    ],
    "update": [vqkit.EMA(decay=1 / 3), vqkit.Gradient(), vqkit.Frozen()],
    "estimator": [vqkit.StraightThrough(), vqkit.RotationTrick(max_gain=1e-7)],
    "start": [vqkit.KMeans(iterations=3, vectors_per_code=5), vqkit.Normal(std=0.1), vqkit.Uniform(bound=10.0)],
    "revival": [vqkit.Reseed(after=0.5, at_most=3), vqkit.NoRevival()],
}
EVERY = [(slot, value) for slot, values in OBJECTS.items() for value in values]


@pytest.mark.parametrize("architecture", [Patchwise, Convolutional])
@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(architecture: type, stride: int, channels: int) -> None:
    model = replace(SMALL, architecture=architecture(stride=stride, hidden=8), channels=channels).build(seed=0)
    x = torch.rand(2, channels, 3 * stride, 5 * stride)
    assert model.encoder(x).shape == (2, 4, 3, 5)
    x_hat, indices, losses = model(x)
    assert x_hat.shape == x.shape and indices.shape == (2, 3, 5) and losses.total.shape == ()
    model.eval()
    torch.testing.assert_close(model.encode(x), indices, rtol=0, atol=0)
    torch.testing.assert_close(model.decode(indices), model(x).x_hat, rtol=0, atol=0)
    assert indices.dtype == torch.int64 and not model.decode(indices).requires_grad


@pytest.mark.parametrize("architecture", [Patchwise(hidden=8), Convolutional(hidden=8)])
def test_every_weight_learns(architecture: Patchwise | Convolutional) -> None:
    torch.manual_seed(0)
    model = replace(SMALL, architecture=architecture, update=vqkit.Gradient()).build(seed=0)
    x = torch.rand(4, 3, 32, 32)
    x_hat, _, losses = model(x)
    (nn.functional.mse_loss(x_hat, x) + losses.total).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_any_modules_compose() -> None:
    vq = vqkit.VectorQuantizer(dim=4, codebook_size=16)
    mlp = VQVAE(nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)), vq, nn.Linear(4, 9))
    x_hat, indices, _ = mlp(torch.rand(5, 9))
    assert x_hat.shape == (5, 9) and indices.shape == (5,) and mlp.decode(indices).shape == (5, 9)
    bare = VQVAE(nn.Identity(), vq, nn.Identity())  # no weights but the codebook
    torch.testing.assert_close(bare.decode(indices), vq.codebook[indices], rtol=0, atol=0)
    conv = VQVAE(nn.Conv1d(2, 4, 3), ChannelsFirst(vq), nn.Conv1d(4, 2, 1))
    assert conv(torch.rand(3, 2, 7)).x_hat.shape == (3, 2, 5)


def test_a_model_composed_by_hand_says_how_to_save_it(tmp_path: Path) -> None:
    model = VQVAE(nn.Linear(9, 4), vqkit.VectorQuantizer(dim=4, codebook_size=16), nn.Linear(4, 9))
    with pytest.raises(ValueError, match=r"composed by hand.*save_file"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("slot, value", EVERY, ids=lambda x: type(x).__name__)
def test_files_give_the_model_back_bit_for_bit(tmp_path: Path, slot: str, value: Any) -> None:
    config = replace(SMALL, revival=vqkit.NoRevival())  # which suits every other
    config = replace(config, **{slot: value})
    model = config.build()
    vqkit.start(model, [torch.rand(2, 3, 16, 16) for _ in range(2)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    vqkit.attach(optimizer, model)
    x_hat, _, losses = model(torch.rand(2, 3, 16, 16))
    (x_hat.square().mean() + losses.total).backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = VQVAE.from_pretrained(tmp_path)
    assert again.config == config and not again.training
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype and torch.equal(tensor, states[1][name]), name
    x = torch.rand(1, 3, 24, 8)
    assert torch.equal(model.eval()(x).x_hat, again(x).x_hat)


def test_saving_again_keeps_the_rest_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"data": "ö", "model": "old"}', encoding="utf-8")
    SMALL.build().save_pretrained(tmp_path)
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert entries == {"data": "ö", "model": SMALL.to_json(), "format": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond ``room`` bytes: as on a full disk, a part is written and the rest is refused."""
    resource = pytest.importorskip("resource", reason="the operating system limits no file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    model = SMALL.build()
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(1000), pytest.raises(OSError):
        replace(SMALL, dim=5).build().save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with full_disk(1000), pytest.raises(OSError):
        replace_file(tmp_path / "new", bytes(2000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.tar.gz"
    path.with_name("file.tar.gz.partial").write_bytes(b"a killed process left this")
    for data in (b"a longer text", b"", b"text"):
        replace_file(path, data)
        assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_file(tmp_path / "folder", b"text")
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "file", b"text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.tar.gz", "folder"]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1])
    replace_file(tmp_path / "file", b"text")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


def test_a_run_without_weights_says_how_to_go_on(tmp_path: Path) -> None:
    SMALL.build().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} has no model.safetensors.*vqkit train --resume {tmp_path}"):
        VQVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("slot, value", EVERY, ids=lambda x: type(x).__name__)
def test_objects_are_parsed_as_they_print(slot: str, value: Any) -> None:
    assert parse_object(slot, repr(value)) == value
    name = type(value).__name__
    assert parse_object(slot, name) == parse_object(slot, f" {name}( ) ") == type(value)()


def test_every_slot_is_tried_here() -> None:
    assert {slot: {type(value) for value in values} for slot, values in OBJECTS.items()} == {
        slot: set(classes) for slot, classes in SLOTS.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "EMA(decay=__import__('os').system('touch PWNED'))",
        "EMA(decay=open('PWNED', 'w').write('x'))",
        "EMA(decay=(lambda: 0.5)())",
        "EMA(decay=0.5 if open('PWNED', 'w') else 1)",
        "EMA(open('PWNED', 'w'))",
        "EMA(*[open('PWNED', 'w')])",
        "EMA(**{'decay': open('PWNED', 'w')})",
        "__import__('os').system('touch PWNED')",
        "open('PWNED', 'w')",
        "EMA.__init__.__globals__",
        "[EMA(decay=0.5)]",
        "EMA()()",
        "EMA(decay=0.5); EMA()",
        "EMA(decay=True)",
        "EMA(decay=None)",
        "EMA(decay=0.5j)",
        "EMA(decay=-'x')",
        "EMA(decay={[]: 1})",
        "EMA(decay=1e999)",
        "EMA(decay=" + "(" * 5000 + ")" * 5000 + ")",
        "EMA(decay=" + "-" * 5000 + "1)",
        "EMA\0",
        "vqkit.EMA()",
        "Given([[1.0]])",
        "",
    ],
    ids=lambda text: text[:40],
)
def test_nothing_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"EMA\(|decay"):
        parse_object("update", text)
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="EMA(decay=0.5)[]{}'\"\\\0 ,*:;\n_-~ü", max_size=30))
@example("EMA(decay=0.5)")
def test_any_text_is_an_object_or_a_value_error(text: str) -> None:
    try:
        assert type(parse_object("update", text)) in SLOTS["update"]
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"codebook_size": -5}, "codebook_size is -5"),
        ({"commitment": float("nan")}, "commitment is nan"),
        ({"start": vqkit.Given([[0.0]])}, r"start is Given.*KMeans\(\), Normal\(\), Uniform\(\).*compose"),
        ({"update": "EMA()"}, r"update is 'EMA\(\)'"),
        ({"update": vqkit.Frozen(), "revival": vqkit.Reseed()}, r"Frozen\(\).*NoRevival\(\)"),
    ],
)
def test_a_config_that_no_file_could_hold(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Patchwise(stride=0), "stride is 0"),
        (lambda: Patchwise(hidden=0), "hidden is 0"),
        (lambda: Convolutional(stride=6), "power of two"),
        (lambda: Convolutional(stride=1), "power of two"),
        (lambda: Convolutional(residual=0), "residual is 0"),
        (lambda: Convolutional(blocks=-1), "blocks is -1"),
    ],
)
def test_arguments_of_architectures(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
