"""The vector quantizer: each vector is replaced by the nearest row of a learned codebook."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqkit.codebooks.revival import NoRevival, Revival
from vqkit.codebooks.starts import DataStart, Start, Uniform
from vqkit.codebooks.updates import Frozen, Gradient, Update
from vqkit.functional.estimators import Estimator, StraightThrough
from vqkit.functional.lookup import look_up
from vqkit.functional.quantize import quantize, statistics_of
from vqkit.functional.sampling import sample_rows
from vqkit.functional.search import search
from vqkit.quantizers.base import Losses, Quantized, Quantizer
from vqkit.quantizers.collector import Collector, Statistics

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from numpy.typing import ArrayLike

    from vqkit.quantizers.learning import Attachment

_USAGE_DECAY = 0.99
_LOW = (torch.float16, torch.bfloat16)


class VectorQuantizer(Quantizer):
    """``z_q(x) = e_k``, ``k = argmin_j |z_e(x) - e_j|^2`` (van den Oord et al. 2017, eq. 1 and 2).

    ``losses.codebook = 1/(N D) sum (sg[z_e] - e)^2`` and ``losses.commitment = commitment/(N D) sum (z_e - sg[e])^2``
    (eq. 3) over the N unmasked vectors. The gradient of z_q reaches z by the estimator, and the codebook never.

    With the defaults the codebook learns by its loss alone. ``EMA``, a start from data and revival learn in
    ``vqkit.step(model)`` after the optimizer's step; ``vqkit.attach(optimizer, model)``, called once, sees to it. The
    statistics they learn from are collected by backward passes in training mode, as gradients are.

    Args:
        dim: length of a vector.
        codebook_size: number of codes, K.
        update: how the codebook learns: ``Gradient()``, ``EMA(decay)`` or ``Frozen()``.
        estimator: what gradient z gets from z_q: ``StraightThrough()`` or ``RotationTrick()``.
        commitment: beta, the weight of the commitment loss.
        start: where the codes begin: ``Uniform()``, ``Normal()``, ``Given(array)`` or ``KMeans()``.
        revival: what happens to codes that are no longer chosen: ``NoRevival()`` or ``Reseed()``.
        seed: of everything drawn at random; None draws it from PyTorch's generator.

    State: ``codebook`` (K, D); ``n`` (K,), its average vectors per step under EMA; ``usage`` (K,), counts that decay
    by 0.99 a step; ``idle`` (K,), tokens since a code was chosen; ``steps``, ``seed``, ``started``. All of it changes
    in ``vqkit.step`` alone (but for a codebook that learns by its gradient). What learns stays float32 under
    ``.half()`` and ``.bfloat16()``.

    Raises:
        ValueError: an argument out of range, or a start whose codes do not fit.

    >>> vq = VectorQuantizer(dim=4, codebook_size=16)
    >>> z_q, indices, losses = vq(torch.randn(2, 10, 4))
    >>> z_q.shape, indices.shape, losses.total.shape
    (torch.Size([2, 10, 4]), torch.Size([2, 10]), torch.Size([]))
    """

    codebook: Tensor
    n: Tensor
    usage: Tensor
    idle: Tensor
    steps: Tensor
    seed: Tensor
    started: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        update: Update = Gradient(),
        estimator: Estimator = StraightThrough(),
        commitment: float = 0.25,
        start: Start = Uniform(),
        revival: Revival = NoRevival(),
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("codebook_size", codebook_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1.")
        if not 0 <= commitment < float("inf"):
            raise ValueError(f"commitment is {commitment}; it must be finite and not negative, for example 0.25.")
        _check_slot("update", update, ("step",), "EMA(decay=0.99)")
        _check_slot("estimator", estimator, ("pull_back",), "StraightThrough()")
        _check_slot("start", start, ("codebook", "from_vectors"), "KMeans(), or Given(array) for codes of your own")
        _check_slot("revival", revival, ("dead",), "Reseed()")
        if isinstance(update, Frozen) and revival.vectors(codebook_size):
            raise ValueError(
                f"revival is {revival}, which moves codes, but update=Frozen() never does: use NoRevival()."
            )
        self.dim, self.codebook_size, self.commitment = dim, codebook_size, commitment
        self.update, self.estimator, self.start, self.revival = update, estimator, start, revival
        self.attachment: Attachment | None = None

        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if isinstance(start, DataStart):
            codebook, n = torch.zeros(codebook_size, dim), torch.zeros(codebook_size)
        else:  # drawn on the CPU, so that every device gets the same codes
            codebook, n = (torch.as_tensor(x) for x in start.codebook(codebook_size, dim, _Drawn(seed)))
        wide = torch.promote_types(codebook.dtype, torch.float32)
        codebook, n = codebook.to(self.seed.device, wide), n.to(self.seed.device, wide).expand(codebook_size).clone()
        if update.by_gradient:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("n", n)
        self.register_buffer("usage", torch.zeros_like(n))
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.int64))
        # An integer, because an average of weights (torch.optim.swa_utils) subtracts buffers, and bool has no minus.
        self.register_buffer("started", torch.tensor(int(not isinstance(start, DataStart))))
        self.register_load_state_dict_post_hook(_prepare_after_load)
        self._prepare()

    # --- what users call ------------------------------------------------------------------------------------------

    def forward(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> Quantized:
        """``Quantized(z_q, indices, losses)``; in training mode backward then collects statistics.

        Raises:
            ValueError: z or mask of a wrong shape or dtype; on the CPU, NaN or infinity in an unmasked vector.
        """
        z_ND, mask_N = self._flat(z, mask)
        codebook_KD, statistics_leaf, sample_leaf, sampled = self.codebook, None, None, None
        if self.pending:
            if not self.training:
                self._require_start()
            elif torch.is_grad_enabled():  # until it starts no gradient may move the codebook: that would count as set
                codebook_KD = codebook_KD * 0 + codebook_KD.detach()
        indices_N = search(_unmasked(z_ND, mask_N, 0), codebook_KD.detach())
        if self.training and torch.is_grad_enabled():
            statistics_leaf, sample_leaf = self.collector.statistics, self.collector.sample
            sampled = self._sample(z_ND, mask_N)
        z_q, codebook_loss, commitment, total = quantize(
            *(z, codebook_KD, indices_N, self.estimator, self.commitment),
            *(mask_N, statistics_leaf, sample_leaf, sampled),
        )
        indices = _unmasked(indices_N, mask_N, -1).view(z.shape[:-1])
        return Quantized(z_q, indices, Losses(codebook_loss, commitment, total))

    def encode(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> Int[Tensor, "..."]:
        """The index of the nearest code for each vector; -1 where ``mask`` is False."""
        z_ND, mask_N = self._flat(z, mask)
        self._require_start()
        indices_N = search(_unmasked(z_ND, mask_N, 0), self.codebook.detach())
        return _unmasked(indices_N, mask_N, -1).view(z.shape[:-1])

    def decode(self, indices: Int[Tensor, "..."], dtype: torch.dtype | None = None) -> Float[Tensor, "... dim"]:
        """The codes that ``indices`` name, in the codebook's dtype or in ``dtype``; zeros where an index is -1.

        Raises:
            ValueError: an index outside -1..K-1.
        """
        self._require_start()
        return look_up(self.codebook, indices).to(dtype or self.codebook.dtype)

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> None:
        """Collects statistics of z without a backward pass, for a codebook fitted to fixed vectors.

        >>> import vqkit
        >>> vq = vqkit.VectorQuantizer(dim=2, codebook_size=8, update=vqkit.EMA(), start=vqkit.KMeans())
        >>> for batch in torch.randn(20, 64, 2):
        ...     vq.observe(batch)
        ...     vqkit.step(vq)
        """
        z_ND, mask_N = self._flat(z, mask)
        searched_ND = _unmasked(z_ND, mask_N, 0)
        indices_N = search(searched_ND, self.codebook)
        residual_ND = searched_ND.to(self.collector.statistics.dtype) - self.codebook[indices_N]
        leaf = self.collector.statistics
        flat = statistics_of(residual_ND, indices_N, mask_N, self.codebook_size, leaf.numel())
        self.collector.add(flat.to(leaf.dtype), self._sample(z_ND, mask_N))

    @torch.no_grad()
    def set_codebook(self, codes: Float[Tensor, "codes dim"] | ArrayLike) -> None:
        """Replaces every code, as ``Given`` does at the start; a start from data that was still to come is off."""
        codes = torch.as_tensor(codes)
        if tuple(codes.shape) != (self.codebook_size, self.dim):
            raise ValueError(
                f"codes has shape {tuple(codes.shape)}; it must be {(self.codebook_size, self.dim)}, as the codebook."
            )
        if not bool(torch.isfinite(codes).all()):
            raise ValueError("codes holds NaN or infinity; every code must be finite.")
        self.codebook.copy_(codes)
        self.n.fill_(1)
        self.idle.zero_()
        self.started.fill_(1)
        self._prepare()

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, update={self.update}, estimator={self.estimator}, "
            f"commitment={self.commitment}, start={type(self.start).__name__}, revival={self.revival}"
        )

    # --- learning: called by vqkit.step ---------------------------------------------------------------------------

    @torch.no_grad()
    def learn(self, statistics: Statistics) -> Tensor:
        """Applies what was collected, once per optimizer step; the rows that were revived (or started)."""
        tokens = statistics.counts.sum()
        revived = torch.empty(0, dtype=torch.int64, device=self.codebook.device)
        if not bool(tokens > 0):
            return revived
        if self.pending:
            if not bool(self.codebook.any()):
                self._start_from(statistics)
                return torch.arange(self.codebook_size, device=self.codebook.device)
            self.started.fill_(1)  # it was set from outside
        else:
            codebook, n = self.update.step(self.codebook, self.n, statistics.counts, statistics.sums, torch)
            if self.update.needs_sums:
                self.codebook.copy_(codebook)
                self.n.copy_(n)
            self.idle.add_(tokens.to(torch.int64)).masked_fill_(statistics.counts > 0, 0)
            self.usage.mul_(_USAGE_DECAY).add_(statistics.counts)
            order = torch.sort(self.idle, descending=True, stable=True).indices
            revived = order[self.revival.dead(self.idle)[order]][: len(statistics.sample)]
            if len(revived):
                self.codebook[revived] = statistics.sample[: len(revived)]
                self.n[revived], self.idle[revived] = 0, 0
        self._next_step()
        return revived

    def _start_from(self, statistics: Statistics) -> None:
        if not isinstance(self.start, DataStart) or not len(statistics.sample):
            warnings.warn(
                "the codebook could not start: no vector was sampled. Call vqkit.start(model, batches) first.",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        drawn, weights = statistics.sample, statistics.weights
        codebook, sizes = self.start.from_vectors(
            drawn, weights, self.codebook_size, _generator(int(self.seed), int(self.steps))
        )
        self.codebook.copy_(codebook)
        self.n.copy_(sizes * (statistics.counts.sum() / weights.sum()))
        self.started.fill_(1)
        self._next_step()

    # --- private --------------------------------------------------------------------------------------------------

    def _flat(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(..., dim) to (N, dim) without gradient, after a look at shapes and dtypes."""
        if not isinstance(z, Tensor) or not (mask is None or isinstance(mask, Tensor)):
            raise ValueError(
                f"z is a {type(z).__name__} and mask a {type(mask).__name__}; convert with torch.as_tensor."
            )
        if z.ndim == 0 or z.shape[-1] != self.dim:
            fix = (
                "the channels come first here: wrap the quantizer, vqkit.ChannelsFirst(vq)"
                if z.ndim > 2 and z.shape[1] == self.dim
                else f"move the axis of length {self.dim} to the end, or set dim={z.shape[-1] if z.ndim else 1}"
            )
            raise ValueError(f"z has shape {tuple(z.shape)}; its last axis must be dim={self.dim} long: {fix}.")
        if not z.is_floating_point():
            raise ValueError(f"z has dtype {z.dtype}; it must be floating: convert it with z.float().")
        if mask is None:
            return z.detach().reshape(-1, self.dim), None
        if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; for z of shape {tuple(z.shape)} it must "
                f"be {tuple(z.shape[:-1])} and torch.bool, True where a vector counts."
            )
        return z.detach().reshape(-1, self.dim), mask.reshape(-1)

    def _sample(self, z_ND: Tensor, mask_N: Tensor | None) -> Tensor | None:
        if not self.collector.vectors:
            return None
        # The sample passes over what is not finite.
        rows = _unmasked(z_ND.to(self.collector.statistics.dtype), mask_N, torch.nan)
        sample = sample_rows(rows, rows.new_ones(rows.shape[0]), self._key(), self.collector.vectors)
        return nn.functional.pad(sample, (0, 1), value=1.0)

    def _require_start(self) -> None:
        if self.pending and not bool(self.codebook.any()):
            raise ValueError(
                f"the codebook has not started: {type(self.start).__name__}() needs encoder outputs. Call "
                "vqkit.start(model, batches) first, or take one training step followed by vqkit.step(model)."
            )

    def _next_step(self) -> None:
        self.steps.add_(1)
        if self.pending:
            self._prepare()  # from now on another number of vectors is sampled

    def _prepare(self) -> None:
        """Makes the leaves anew: after a start, a load, a move. What they had collected is dropped."""
        # A tensor on the meta device holds no answer.
        self.pending = isinstance(self.start, DataStart) and (self.started.is_meta or not bool(self.started))
        wanted = self.start if isinstance(self.start, DataStart) and self.pending else self.revival
        vectors = wanted.vectors(self.codebook_size)
        needs_step = self.update.needs_sums or vectors > 0
        self.collector = Collector(self.codebook, self.update.needs_sums, vectors, self._key, needs_step)

    def _key(self) -> Tensor:
        """Of the sample; computed when used, because DDP hands rank 0's seed to the others after construction."""
        return self.seed + self.steps * 0x632BE59BD9B4E019  # odd: distinct steps give distinct keys modulo 2^64

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        def keep_float32(tensor: Tensor) -> Tensor:
            """An average in bfloat16 stalls: what learns follows to a device, but not to a low precision."""
            moved = fn(tensor)
            follows = tensor is self.codebook and isinstance(self.update, Frozen)
            return tensor.to(moved.device) if moved.dtype in _LOW and not follows else moved

        super()._apply(keep_float32, recurse)
        self._prepare()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "collector": None, "attachment": None}  # a copy starts with nothing collected

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()


def _check_slot(name: str, value: object, methods: tuple[str, ...], example: str) -> None:
    if isinstance(value, type) or not any(hasattr(value, method) for method in methods):
        raise ValueError(f"{name} is {value!r}; it must be an object such as {example}.")


def _generator(seed: int, steps: int) -> torch.Generator:
    """Randomness is a function of (seed, steps), so that ranks agree and a resumed run repeats itself."""
    return torch.Generator().manual_seed((seed * 1_000_003 + steps) % 2**63)


class _Drawn:
    """NumPy's names for PyTorch's draws, on the CPU."""

    def __init__(self, seed: int) -> None:
        self._generator = _generator(seed, 0)

    def standard_normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, device="cpu")

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._generator, device="cpu")


def _unmasked(values: Tensor, mask_N: Tensor | None, filler: float) -> Tensor:
    """The values (N,) or (N, dim), with ``filler`` where a vector does not count."""
    if mask_N is None:
        return values
    return torch.where(mask_N.view(-1, *(1,) * (values.ndim - 1)), values, filler)


def _prepare_after_load(module: VectorQuantizer, _: object) -> None:
    """With ``assign=True`` a state in half precision may have come in."""
    for tensor in (module.codebook, module.n, module.usage):
        if tensor.dtype in _LOW and not (tensor is module.codebook and isinstance(module.update, Frozen)):
            tensor.data = tensor.data.float()
    module._prepare()
