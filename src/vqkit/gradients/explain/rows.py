"""Part 5: how a row of the codebook learns, by gradients and by averages, and what each of the two losses is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.codebooks import EMA
from vqkit.gradients.explain import tensorflow
from vqkit.gradients.explain.learning import LOSSES
from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.gradients.explain.published import CROP, held_out, trained
from vqkit.gradients.explain.tensorflow import IDLE, LOOKED_UP, RATE, SIZE, START, idle_rows
from vqkit.gradients.routes import route
from vqkit.pages import Linear, Log, Series, line_chart, number, tag

DECAY, BATCHES = 0.9, ((10.0, 1), (0.0, 99))  # each batch: the value of its vectors, and how many
DENSE: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda e: torch.optim.SGD(e, RATE),
    "momentum": lambda e: torch.optim.SGD(e, RATE, momentum=0.9),
    "Adam": lambda e: torch.optim.Adam(e, RATE),
    "AdamW": lambda e: torch.optim.AdamW(e, RATE, weight_decay=0.01),
}
SPARSE: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": DENSE["SGD"],
    "SparseAdam": lambda e: torch.optim.SparseAdam(e, RATE),
}


def rows(say: Say) -> Part:
    """What a gather hands back, what optimizers do to rows not looked up, by hand, EMA, and the reasons of two losses.

    TensorFlow is measured in a process of its own meanwhile.
    """
    with tensorflow.measuring() as measured:
        say("which rows learn, and how")
        s = trained()(held_out(CROP, 64))
        tables = {name: _over_time(make, False) for name, make in DENSE.items()}
        idle = {f"PyTorch {name}": idle_rows(run) for name, run in tables.items()}
        idle |= {f"PyTorch {name}, sparse": idle_rows(_over_time(make, True)) for name, make in SPARSE.items()}
        facts: dict[str, Any] = {
            "gather": {way: _held(loss) for way, loss in GATHERS.items()},
            "by_hand": {name: _difference(name) for name in DENSE},
            "ema": _averages(),
            "codebook": {loss: route(getattr(s, loss), [trained().codebook])._asdict() for loss in LOSSES},
        }
        say("what TensorFlow does")
        facts["tensorflow"] = measured()
    keras = facts["tensorflow"]["facts"]
    facts["gather"] |= {"tf.gather": keras["gather"], "tf.gather, and the table used whole": keras["dense_use"]}
    facts["idle"] = idle | {f"Keras {name}, IndexedSlices": moved for name, moved in keras["optimizers"].items()}
    drift = [
        Series(
            name,
            range(len(run) - 1),
            [float((torch.tensor(t[0]) - torch.tensor(run[1][0])).abs().max()) for t in run[1:]],
        )
        for name, run in tables.items()
    ]
    ema, shown = facts["ema"], range(1, 41)
    averages = [
        Series("average of means", shown, ema["means"][:40], number(ema["after_1"][0])),
        Series("counts and sums", shown, ema["sums"][:40], number(ema["after_1"][1])),
        Series("all vectors", shown, [ema["truth"]] * 40),
    ]
    charts = {
        "idle": line_chart(drift, Linear(), title="How far a row moves after its last look-up", x_label="step"),
        "ema": line_chart(averages, Log(), title="One code, batches of 1 and 99 vectors in turn", x_label="batch"),
    }
    figures = {name: tag("div", {"class": "charts"}, chart) for name, chart in charts.items()}
    return Part("rows", "How a row of the codebook learns", facts, _tables(facts), figures)


# --- gather -------------------------------------------------------------------------------------------------------

GATHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "e[k]": lambda e, k: e[k].sum(),
    "F.embedding(k, e)": lambda e, k: F.embedding(k, e).sum(),
    "F.embedding(k, e, sparse=True)": lambda e, k: F.embedding(k, e, sparse=True).sum(),
    "the same, and the table used whole": lambda e, k: F.embedding(k, e, sparse=True).sum() + e.square().sum(),
}


def _held(loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """The gradient of a table of ones: its type, which rows it has an entry for, and the sum of each row."""
    e = torch.ones(SIZE, requires_grad=True)
    (g,) = torch.autograd.grad(loss(e, torch.tensor(LOOKED_UP)), e)
    entries = g._indices()[0].tolist() if g.is_sparse else list(range(SIZE[0]))
    kind = "sparse_coo" if g.is_sparse else "dense"
    return {"type": kind, "entries": entries, "sums": (g.to_dense() if g.is_sparse else g).sum(1).tolist()}


# --- optimizers ---------------------------------------------------------------------------------------------------


def _over_time(make: Callable[[list[Tensor]], torch.optim.Optimizer], sparse: bool) -> list[list[list[float]]]:
    """The table before each step and at the end; the loss is ``sum (e_k - 1)^2``."""
    e = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer, tables = make([e]), [e.tolist()]
    for k in IDLE:
        optimizer.zero_grad()
        (F.embedding(torch.tensor(k), e, sparse=sparse) - 1).square().sum().backward()
        optimizer.step()
        tables.append(e.tolist())
    return tables


def by_hand(name: str, e: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step t of an optimizer: the table and its two averages, which are of every row, looked up or not.

    SGD ``e' = e - rate g``; momentum ``m' = 0.9 m + g``, ``e' = e - rate m'``; Adam ``m' = 0.9 m + 0.1 g``,
    ``v' = 0.999 v + 0.001 g^2``, ``e' = e - rate m'/(1 - 0.9^t) / (sqrt(v'/(1 - 0.999^t)) + 1e-8)``; AdamW takes
    ``rate 0.01 e`` off every row before.
    """
    if name == "SGD":
        return e - RATE * g, m, v
    if name == "momentum":
        m = 0.9 * m + g
        return e - RATE * m, m, v
    if name == "AdamW":
        e = e * (1 - RATE * 0.01)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return e - RATE * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8), m, v


def _difference(name: str) -> float:
    """The largest in 50 steps between PyTorch's optimizer and ``by_hand``, whose gradient is a scatter-add."""
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(SIZE, dtype=torch.float64, generator=generator).requires_grad_()
    optimizer, largest = DENSE[name]([e]), 0.0
    mine, m, v = e.detach().clone(), torch.zeros_like(e), torch.zeros_like(e)
    for t in range(1, 51):
        k = torch.randint(SIZE[0], (6,), generator=generator)
        z = torch.randn(6, SIZE[1], dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (z - e[k]).square().mean().backward()
        optimizer.step()
        g = torch.zeros_like(mine).index_add_(0, k, 2 * (mine[k] - z) / z.numel())
        mine, m, v = by_hand(name, mine, g, m, v, t)
        largest = max(largest, float((mine - e.detach()).abs().max()))
    return largest


# --- averages -----------------------------------------------------------------------------------------------------


def _averages() -> dict[str, Any]:
    """One code, batches in turn of 1 vector at 10 and of 99 at 0: counts and sums beside the average of batch means."""
    e, n = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    means, sums = [0.0], [0.0]
    for value, count in BATCHES * 100:
        e, n = EMA(DECAY).step(e, n, torch.full_like(n, count), count * (value - e), torch)
        sums.append(e.item())
        means.append(DECAY * means[-1] + (1 - DECAY) * value)
    truth = sum(value * count for value, count in BATCHES) / sum(count for _, count in BATCHES)
    after = {"after_1": [means[-2], sums[-2]], "after_99": [means[-1], sums[-1]]}
    return {"decay": DECAY, "truth": truth, **after, "means": means[1:], "sums": sums[1:]}


def _tables(facts: dict[str, Any]) -> dict[str, Table]:
    gathers = [(way, g["type"], ", ".join(map(str, g["entries"]))) for way, g in facts["gather"].items()]
    idle = [(name, *moved.values()) for name, moved in facts["idle"].items()]
    ema = facts["ema"]
    names = ("batch means", "counts and sums")
    averages = [(name, *after) for name, *after in zip(names, ema["after_1"], ema["after_99"], strict=True)]
    return {
        "gather": Table(
            "The gradient after the look-ups 1, 3, 3, 7", ("look-up", "type", "rows with an entry"), gathers
        ),
        "idle": Table(
            "Largest movement of a row that is not looked up",
            ("optimizer", "never looked up", "1 step after", "100 after"),
            idle,
        ),
        "by_hand": Table("Largest difference in 50 steps", ("optimizer", "difference"), list(facts["by_hand"].items())),
        "ema": Table("Where the code stands", ("", "after the 1", "after the 99"), averages),
    }
