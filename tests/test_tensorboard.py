"""TensorBoard: what a run wrote is read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.training.tensorboard import TensorBoard

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'vqkit[tensorboard]'"
)

IMAGES = "images/original_above_reconstruction"
TAGS = {
    "loss": "loss/total",
    "reconstruction": "loss/reconstruction",
    "codebook": "loss/codebook",
    "commitment": "loss/commitment",
    "perplexity": "codes/perplexity",
    "batch_perplexity": "codes/batch_perplexity",
    "learning_rate": "learning_rate",
    "images_per_second": "speed/images_per_second",
}


def row(step: int, scale: float = 1.0) -> dict[str, float]:
    return {"step": step, **{name: scale * (step + i / 7) for i, name in enumerate(TAGS)}}


def read(directory):
    events = accumulators.EventAccumulator(str(directory))
    events.Reload()
    return events


def scalars(directory) -> dict[str, dict[int, float]]:
    """By tag, by step; a step that is there twice fails."""
    events = read(directory)
    found = {}
    for tag in events.Tags()["scalars"]:
        found[tag] = {event.step: event.value for event in events.Scalars(tag)}
        assert len(found[tag]) == len(events.Scalars(tag))
    return found


def grid(directory, step: int) -> np.ndarray:
    (event,) = (event for event in read(directory).Images(IMAGES) if event.step == step)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_rows_arrive_under_their_tags(tmp_path):
    board = TensorBoard(tmp_path)
    board.begin(0)
    for step in (20, 40):
        board.row(row(step))
    board.close()
    found = scalars(tmp_path)
    assert found.keys() == set(TAGS.values())
    for name, tag in TAGS.items():
        assert found[tag] == pytest.approx({step: row(step)[name] for step in (20, 40)}, rel=1e-6)


def test_rows_can_be_read_while_the_run_goes_on_and_after_it_was_killed(tmp_path):
    board = TensorBoard(tmp_path)
    board.begin(0)
    board.row(row(20))
    assert scalars(tmp_path)["loss/total"] == {20: 20.0}
    board.images(20, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert grid(tmp_path, 20).shape == (8, 4, 3)
    board.close()


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    first = TensorBoard(tmp_path)
    first.begin(0)
    for step in (20, 40, 60, 80):
        first.row(row(step))
    first.images(40, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    first.images(80, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    # Never closed, as after kill -9.
    second = TensorBoard(tmp_path)
    second.begin(40)
    second.row(row(60, scale=100.0))
    second.close()
    assert scalars(tmp_path)["loss/total"] == {20: 20.0, 40: 40.0, 60: 6000.0}
    assert [event.step for event in read(tmp_path).Images(IMAGES)] == [40]
    first.close()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 5, 8, 12])
def test_originals_stand_above_their_reconstructions(tmp_path, channels, batch):
    rng = np.random.default_rng(0)
    x, x_hat = rng.integers(0, 256, (2, batch, channels, 6, 7))
    board = TensorBoard(tmp_path)
    board.begin(0)
    board.images(3, torch.tensor(x / 255), torch.tensor(x_hat / 255, requires_grad=True))
    board.close()
    shown = grid(tmp_path, 3)
    assert shown.shape == (12, 7 * min(batch, 8), 3)
    for i in range(min(batch, 8)):
        column = shown[:, 7 * i : 7 * i + 7]
        for c in range(3):
            np.testing.assert_array_equal(column[:6, :, c], x[i, min(c, channels - 1)])
            np.testing.assert_array_equal(column[6:, :, c], x_hat[i, min(c, channels - 1)])


def test_reconstructions_of_any_precision_are_clipped(tmp_path):
    board = TensorBoard(tmp_path)
    board.begin(0)
    x_hat = torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 5)
    board.images(1, torch.zeros(1, 1, 1, 5), x_hat.bfloat16())
    board.close()
    assert grid(tmp_path, 1)[1, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_board_that_never_began_can_be_closed_but_not_written(tmp_path):
    board = TensorBoard(tmp_path / "new")
    with pytest.raises(ValueError, match=r"call begin\(step\)"):
        board.row(row(1))
    board.close()
    assert not (tmp_path / "new").exists()


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    # Python imports nothing that is None in sys.modules, and torch must ask for it anew.
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'vqkit\[tensorboard\]'"):
        TensorBoard(tmp_path)
