"""Faults in how codebooks learn, as found in public code; each breaks the law that it names, and is caught by it.

Where one fault would break several laws, it is switched on only where its own law looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import vqkit
from tests.contract.law import Broken
from tests.zoo import Case, given, kmeans, made, normal
from vqkit.quantizers.collector import Statistics

_EMA = vqkit.EMA()

# --- law 11: when a codebook learns -------------------------------------------------------------------------------


class LearnsInForward(vqkit.VectorQuantizer):
    """Learns at once in forward, from this rank's batch alone; forward runs twice under checkpointing."""

    def learns_now(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        if not self.learns_now():
            return super().forward(z, mask)
        self.observe(z, mask)
        self.learn(self.collector.take())
        training, self.training = self.training, False
        out = super().forward(z, mask)
        self.training = training
        return out


class LearnsUnderNoGrad(LearnsInForward):
    def learns_now(self) -> bool:
        return self.training and not torch.is_grad_enabled()


class LearnsInEvaluation(LearnsInForward):
    def learns_now(self) -> bool:
        return not self.training


class CollectsInEvaluation(vqkit.VectorQuantizer):
    """Asks only whether gradients are enabled, as a hook does that was registered once and for all."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        training, self.training = self.training, True
        out = super().forward(z, mask)
        self.training = training
        return out


class CollectsInTensorHook(vqkit.VectorQuantizer):
    """A hook on z_q: it runs for `autograd.grad` as for backward, and not at all where z needs no gradient."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(z, mask)
        self.training = False
        out = super().forward(z, mask)
        self.training = True
        if out.z_q.requires_grad:
            out.z_q.register_hook(lambda gradient: self.observe(z.detach(), mask))
        return out


class _LateCommitment(torch.autograd.Function):
    """Looks the codes up when backward runs, whatever has been written to the codebook since."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, vq: vqkit.VectorQuantizer, indices: Tensor) -> Tensor:
        ctx.save_for_backward(z, indices)
        ctx.vq = vq
        return vq.commitment * (z - vq.decode(indices)).square().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, indices = ctx.saved_tensors
        return gradient * ctx.vq.commitment * 2 / z.numel() * (z - ctx.vq.decode(indices)), None, None


class ReadsCodebookInBackward(vqkit.VectorQuantizer):
    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        z_q, indices, losses = super().forward(z, mask)
        late = _LateCommitment.apply(z, self, indices)
        return vqkit.Quantized(z_q, indices, losses._replace(commitment=late, total=late))


# --- law 12: the exponential moving average -----------------------------------------------------------------------


@dataclass(frozen=True)
class IdleToZero(vqkit.EMA):
    """The published sums m and n with Laplace smoothing; m begins at 0, so a code not chosen at once is 0/n."""

    def past(self, codebook: Tensor, n: Tensor) -> Tensor:
        return n[:, None] * codebook

    def step(self, codebook: Tensor, n: Tensor, counts: Tensor, sums: Tensor, xp: object) -> tuple[Tensor, Tensor]:
        m = self.decay * self.past(codebook, n) + (1 - self.decay) * (sums + counts[:, None] * codebook)
        n = self.decay * n + (1 - self.decay) * counts
        smoothed = (n + 1e-5) / (n.sum() + 1e-5 * len(n)) * n.sum()
        return m / smoothed[:, None], n


@dataclass(frozen=True)
class IdleToMillion(IdleToZero):
    """m begins at the codebook and n at 0: an idle code is divided by the smoothing constant."""

    def past(self, codebook: Tensor, n: Tensor) -> Tensor:
        return torch.where((n > 0)[:, None], n[:, None] * codebook, codebook)


@dataclass(frozen=True)
class Underflows(vqkit.EMA):
    """m/n without smoothing: after 830 idle steps at decay 0.9 both are denormal, and their ratio is any number."""

    def step(self, codebook: Tensor, n: Tensor, counts: Tensor, sums: Tensor, xp: object) -> tuple[Tensor, Tensor]:
        learnt, n = super().step(codebook, n, counts, sums, xp)
        normal_K = (n > torch.finfo(n.dtype).tiny)[:, None]
        return torch.where(normal_K, learnt, (n[:, None] * codebook) / n[:, None]), n


class AverageInLowPrecision(vqkit.VectorQuantizer):
    """Follows the model to half precision, in which an average stalls."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        nn.Module._apply(self, fn, recurse)
        self._prepare()
        return self


# --- laws 13 and 14: starts and revival ---------------------------------------------------------------------------


class StaleSums(vqkit.VectorQuantizer):
    """Keeps m and n = 1 from a random start; neither k-means, nor revival, nor who writes in place tells them."""

    def __init__(self, dim: int, codebook_size: int, **slots: Any) -> None:
        super().__init__(dim, codebook_size, **slots)
        self.m = torch.randn(codebook_size, dim, generator=torch.Generator().manual_seed(1))
        self.weight = torch.ones(codebook_size)

    def set_codebook(self, codes: Tensor) -> None:
        super().set_codebook(codes)
        self.m = codes * self.weight[:, None]

    @torch.no_grad()
    def learn(self, statistics: Statistics) -> Tensor:
        before, was_pending = self.codebook.clone(), self.pending
        changed = super().learn(statistics)
        if not was_pending and statistics.counts.any():
            rate, counts = 1 - self.update.decay, statistics.counts
            self.m += rate * (statistics.sums + counts[:, None] * before - self.m)
            self.weight += rate * (counts - self.weight)
            kept = torch.ones(len(before), dtype=torch.bool)
            kept[changed] = False
            self.codebook[kept] = (self.m / self.weight[:, None])[kept]
        return changed


@dataclass(frozen=True)
class ZerosForMissingPoints(vqkit.KMeans):
    """Fewer points than codes: the rest of the table stays zero."""

    def from_vectors(
        self, vectors: Tensor, weights: Tensor, codes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        centres, n = super().from_vectors(vectors, weights, codes, generator)
        centres[len(vectors) :] = 0
        return centres, n


@dataclass(frozen=True)
class DrawsFromGlobalGenerator(vqkit.KMeans):
    """Ranks, and resumed runs, start from different points."""

    def from_vectors(
        self, vectors: Tensor, weights: Tensor, codes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        elsewhere = torch.Generator().manual_seed(int(torch.randint(2**60, ())))
        return super().from_vectors(vectors, weights, codes, elsewhere)


class AbsoluteThreshold(vqkit.VectorQuantizer):
    """A code is dead while its average count is below 2, so small batches revive what large ones keep."""

    def learn(self, statistics: Statistics) -> Tensor:
        self.idle[self.usage < 2] = int(self.revival.after * self.codebook_size)
        return super().learn(statistics)


class OptimizerRemembers(vqkit.VectorQuantizer):
    """Tells nobody which rows moved, so Adam drags them on by the momentum of their old place."""

    def learn(self, statistics: Statistics) -> Tensor:
        return super().learn(statistics)[:0]


# --- law 15: what is not finite -----------------------------------------------------------------------------------


class OneHotProduct(vqkit.VectorQuantizer):
    """Sums by a product with one-hot rows: 0 x NaN is NaN, and one vector is in the sum of every code."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        if bool(torch.isfinite(z).all()):
            return super().forward(z, mask)
        out = super().forward(torch.nan_to_num(z, 0, 0, 0), mask)
        flat, indices = z.detach().reshape(-1, self.dim), out.indices.reshape(-1)
        one_hot = nn.functional.one_hot(indices, self.codebook_size).to(flat)
        sums = one_hot.T @ (flat - self.codebook.detach()[indices])
        self.collector.add(torch.cat([one_hot.new_zeros(1), one_hot.sum(0), sums.reshape(-1)]), None)
        return out


# --- laws 17 to 21: state, ranks, graphs, usage -------------------------------------------------------------------


class LoadsAnything(vqkit.VectorQuantizer):
    """An old file lacks entries, so none is asked for."""

    def _load_from_state_dict(
        self, entries: Any, prefix: Any, meta: Any, strict: Any, missing: Any, foreign: Any, errors: list[str]
    ) -> None:
        super()._load_from_state_dict(entries, prefix, meta, strict, [], foreign, errors)


class SavesAPickle(vqkit.VectorQuantizer):
    """Puts its configuration, an object, among the weights."""

    def get_extra_state(self) -> object:
        return self.update

    def set_extra_state(self, state: object) -> None:
        self.update = state


class CachesProcessGroup(vqkit.VectorQuantizer):
    """Asks for the process group once, when it is made: before there is one, so it never synchronises."""

    def _prepare(self) -> None:
        super()._prepare()
        self.alone = getattr(self, "alone", not dist.is_initialized())
        take, own = self.collector.take, []

        def remember() -> Statistics:
            own[:] = [take()]
            return own[0]

        self.collector.take = remember
        if self.alone:
            self.collector.merge = lambda flat, samples: own[0]


class BreaksGraph(vqkit.VectorQuantizer):
    """Python looks at the data, of which a compiled graph knows nothing."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        if z.abs().max().item() > 1e4:
            z = z.clamp(-1e4, 1e4)
        return super().forward(z, mask)


class AveragesUsage(vqkit.VectorQuantizer):
    """Averages the frequencies of batches: one of 1 vector weighs as much as one of 400."""

    def learn(self, statistics: Statistics) -> Tensor:
        before = self.usage.clone()
        changed = super().learn(statistics)
        self.usage.copy_(0.99 * before + 0.01 * statistics.counts / statistics.counts.sum().clamp(min=1))
        return changed


def _broken(name: str, breaks: str, found_in: str, update: vqkit.EMA | vqkit.Gradient = _EMA, **slots: Any) -> Broken:
    kind = "gradient" if update.by_gradient else "ema"
    return Broken(Case(name, made(**{"update": update, "start": normal, **slots}), kind), breaks, found_in)


BROKEN: tuple[Broken, ...] = (
    _broken("learns-in-forward", "law_11_once", "EMA layers under checkpointing", cls=LearnsInForward),
    _broken("learns-before-step", "law_11_forward_keeps_state", "EMA layers", cls=LearnsInForward),
    _broken("learns-under-no-grad", "law_11_nothing", "EMA layers guarded by self.training", cls=LearnsUnderNoGrad),
    _broken("learns-in-evaluation", "law_11_nothing", "EMA layers without a guard", cls=LearnsInEvaluation),
    _broken("collects-in-evaluation", "law_11_nothing", "hooks on the module", cls=CollectsInEvaluation),
    _broken("collects-by-autograd-grad", "law_11_nothing", "hooks on a tensor", cls=CollectsInTensorHook),
    _broken("needs-gradient-of-z", "law_11_once", "hooks on a tensor, encoder frozen", cls=CollectsInTensorHook),
    _broken("written-before-backward", "law_11_step_between", "in-place EMA", cls=ReadsCodebookInBackward),
    _broken("idle-to-zero", "law_12_idle_rows", "sums that begin at zero", update=IdleToZero()),
    _broken("idle-to-million", "law_12_idle_rows", "n that begins at zero", update=IdleToMillion()),
    _broken("underflow", "law_12_idle_rows", "decayed sums", update=Underflows(), start=given),
    _broken("bfloat16-average", "law_12_precision", "buffers that follow .half()", cls=AverageInLowPrecision),
    _broken("kmeans-forgotten", "law_13_start", "k-means that leaves the sums", cls=StaleSums, start=kmeans),
    _broken("kmeans-zeros", "law_13_few_points", "k-means", start=lambda *_: ZerosForMissingPoints()),
    _broken("kmeans-global-seed", "law_13_deterministic", "k-means", start=lambda *_: DrawsFromGlobalGenerator()),
    _broken("revival-overwritten", "law_14_revived_codes_live", "revival", cls=StaleSums, revival=vqkit.Reseed()),
    _broken("absolute-threshold", "law_14_age_in_tokens", "revival", cls=AbsoluteThreshold, revival=vqkit.Reseed()),
    _broken(
        *("optimizer-remembers", "law_14_optimizer_memory", "revival of parameters", vqkit.Gradient()),
        **{"cls": OptimizerRemembers, "revival": vqkit.Reseed()},
    ),
    _broken("nan-in-every-row", "law_15_finite", "one-hot products", cls=OneHotProduct),
    _broken("loads-anything", "law_17_strict", "lenient loading", cls=LoadsAnything),
    _broken("saves-a-pickle", "law_17_round_trip", "objects in checkpoints", cls=SavesAPickle),
    _broken("set-then-overwritten", "law_17_set_stays", "m and n beside the codebook", cls=StaleSums),
    _broken("statistics-of-one-rank", "law_18_ranks", "statistics in buffers under DDP", cls=LearnsInForward),
    _broken("cached-group", "law_18_ranks", "a look-up when the layer is made", cls=CachesProcessGroup),
    _broken("breaks-graph", "law_19_compile", "Python that looks at the data", cls=BreaksGraph),
    _broken("averages-usage", "law_21_usage", "averages of averages", cls=AveragesUsage),
)
