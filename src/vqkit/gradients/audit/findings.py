"""What an audit can find: of every finding the law, what was expected, why it matters and how it is mended."""

from __future__ import annotations

from vqkit.gradients.audit.report import Finding, Kept, Severity, law

Found = list[Finding | Kept]
_TOKENS = "The tokens are then those of other codes, and the losses pull at these."
_LOSSES = "codebook loss 1/(N D) sum |sg[z] - e|^2, commitment loss beta/(N D) sum |z - sg[e]|^2"
_TERMS = "F.mse_loss(q, z.detach()) + beta * F.mse_loss(z, q.detach())"
_SUMS = "write it into the sums m and n too: m = n * codebook"

# name: law, severity; expected; why; fix
FINDINGS: dict[str, tuple[int, Severity, str, str, str]] = {
    "no rows": (
        *(1, "fault", "z_q is a row of the codebook, bit for bit"),
        "The decoder is trained on, or given, something that no index stands for.",
        "z_q = z + (q - z).detach()",
    ),
    "rounded rows": (
        *(1, "hazard", "z_q is a row of the codebook, bit for bit"),
        "In half precision the decoder is trained on noise, and decodes from indices something else than it saw.",
        "z_q = q.detach() + (z - z.detach()), or an autograd.Function that returns q",
    ),
    "not nearest": (
        *(2, "fault", "the nearest code"),
        "Reconstructions are worse than the codebook allows, and the losses pull at the wrong codes.",
        "indices = torch.cdist(z, codebook).argmin(-1)",
    ),
    "1000 standard deviations from the origin": (
        *(2, "hazard", "the nearest code", _TOKENS),
        "subtract the codes' mean from both, or compare in float64",
    ),
    "where vectors and codes are closer than 1e-4": (
        *(2, "hazard", "the nearest code", _TOKENS),
        "compare squares: no clamp and no square root",
    ),
    "with the layer and z in bfloat16": (
        *(2, "hazard", "the nearest code", _TOKENS),
        "compute distances of z.float() to codes in float32",
    ),
    "under autocast on the CPU": (
        *(2, "hazard", "the nearest code", _TOKENS),
        "with torch.autocast(z.device.type, enabled=False): compute distances of z.float()",
    ),
    "ties": (
        *(2, "hazard", "of equal codes the first"),
        "Which of two equal codes a token names depends on the arithmetic.",
        "argmin over float64 distances",
    ),
    "mixed": (
        *(3, "fault", "an index depends on its vector alone"),
        "Vectors are mixed: what is looked up is not what stands at a position.",
        "move the channels last before the reshape, and back after it: z.permute(0, 2, 3, 1).reshape(-1, dim)",
    ),
    "split": (
        *(3, "fault", "an index depends on its vector alone"),
        "Tokens then depend on the batch size: they cannot be reproduced, nor compared.",
        "one algorithm for every size: torch.cdist(..., compute_mode='donot_use_mm_for_euclid_dist')",
    ),
    "decodes otherwise": (
        *(4, "fault", "decode(indices) is z_q"),
        "What is stored or generated as indices decodes to something else than was trained.",
        "return codebook[indices]",
    ),
    "encodes otherwise": (
        *(4, "fault", "encode(decode(i)) is i, and encode(z) what forward returns"),
        "Tokens stand for other codes than those that were trained.",
        "encode by the search that forward uses",
    ),
    "decodes anything": (
        *(4, "hazard", "zeros for -1, an error for any other index out of range"),
        "Padding, and damaged tokens, decode to codes in silence.",
        "zeros where an index is -1; ValueError outside -1..K-1",
    ),
    "n x k": (
        *(20, "hazard", "memory O(N D + K D)"),
        "A batch that would fit does not, and most of the time goes into moving these numbers.",
        "search in chunks; look codes up with F.embedding(indices, codebook), count them with bincount",
    ),
    "poison": (
        *(15, "hazard", "a finite codebook"),
        "One bad vector destroys what was learnt, and no later step repairs it.",
        "keep what is not finite out of the statistics; index_add_, not a product with one-hot rows",
    ),
    "accepted": (
        *(15, "hazard", "an error that names z"),
        "Training goes on with codes that stand for nothing, and the first sign is far from the cause.",
        'if not torch.isfinite(z).all(): raise ValueError("z holds NaN or infinity")',
    ),
    "empty": (
        *(16, "hazard", "loss zero, no update, no error"),
        "One such batch, of one rank or at the end of the data, makes every weight NaN or ends the training.",
        "divide by the number of vectors that count, at least 1: .sum() / max(n, 1)",
    ),
    "padding": (
        *(16, "hazard", "the mean over the vectors that count"),
        "Padding changes what is learnt.",
        "(error * mask[..., None]).sum() / (mask.sum() * dim)",
    ),
    "no estimator": (
        *(5, "fault", "dL/dz is dL/dz_q, or another estimator's closed form"),
        "The encoder learns nothing from the reconstruction: it follows the commitment loss alone.",
        "z_q = z + (q - z).detach()",
    ),
    "multiplied": (
        *(5, "fault", "dL/dz is dL/dz_q, or another estimator's closed form"),
        "The encoder's gradient from the reconstruction has another length, or direction, than it is meant to.",
        "z_q = z + (q - z).detach(): z must stand in it once",
    ),
    "leak": (
        *(5, "fault", "the derivative of z_q by the codebook is exactly 0"),
        "The reconstruction loss moves the codes too, away from the vectors that choose them.",
        "z_q = z + (q - z).detach(): detach q, and its length, where z_q is made",
    ),
    "gain": (
        *(10, "hazard", "a bounded gain |dL/dz| / |dL/dz_q|"),
        "One vector near the origin, as after a ReLU, gives the encoder a gradient that drowns all others.",
        "bound the scale |q|/|z|, and copy the gradient where z is 0: vqkit.RotationTrick(max_gain=10)",
    ),
    "sums": (
        *(6, "hazard", _LOSSES),
        "Batch size, resolution or dim change the weight of this loss against the reconstruction.",
        "take means: .square().mean()",
    ),
    "after the estimator": (
        *(6, "fault", _LOSSES),
        "No code learns, and the encoder is pushed where it should be pulled; the loss's value looks right.",
        f"take the losses before the estimator: {_TERMS}",
    ),
    "beta": (
        *(6, "fault", _LOSSES),
        "beta scales how fast the codes follow as well, or only that: it does not tune the commitment.",
        f"beta on the commitment alone: {_TERMS}",
    ),
    "weight": (
        *(6, "hazard", _LOSSES),
        "Under SGD the codes learn at another rate than the learning rate says.",
        _TERMS,
    ),
    "value": (
        *(8, "fault", "gradients that sum to the change of the value, but for stop-gradients"),
        "The loss that is printed is not the one that is minimised: its weights mean something else than they say.",
        "check the backward that is written by hand: torch.autograd.gradcheck",
    ),
    "second derivative": (
        *(8, "hazard", "the second derivative of the loss, under create_graph=True"),
        "Gradient penalties and second-order methods lose a term, silently.",
        "save inputs with ctx.save_for_backward and compute with them; no detached numbers in backward",
    ),
    "dead codebook": (
        *(9, "fault", "a codebook that something moves"),
        "It is a parameter in no loss that is added: the codes stay as they were drawn.",
        "add F.mse_loss(q, z.detach()) to the loss, or update the codes by EMA",
    ),
    "idle term": (
        *(9, "fault", "every term of the loss moves something"),
        "It is added to the objective, looks like a term and does nothing.",
        "do not detach both sides; make the codes a parameter where a regulariser is to move them",
    ),
    "evaluation": (
        *(11, "fault", "evaluation changes no state"),
        "Validation trains the codebook, on validation data; a result changes with how often it is asked for.",
        "if self.training and torch.is_grad_enabled(): ...",
    ),
    "early": (
        *(11, "hazard", "evaluation starts nothing"),
        "A validation pass before training, or a forgotten checkpoint, starts the codebook from validation data.",
        "if self.training: start",
    ),
    "forward": (
        *(11, "hazard", "state changes by a training step alone"),
        "Whatever runs forward twice, or without a step, trains the codebook as well.",
        "learn in backward, or in a call after optimizer.step(), as vqkit.step(model) does",
    ),
    "once": (
        *(11, "hazard", "a batch counts once"),
        "The codebook learns at another rate than the rest of the model, silently.",
        "learn in backward, or in a call after optimizer.step(), as vqkit.step(model) does",
    ),
    "written": (
        *(11, "hazard", "the gradients of the forward pass"),
        "A second forward, or a step, before backward makes gradients wrong, or stops training.",
        "save in forward what backward needs; look nothing up in backward",
    ),
    "means": (
        *(12, "hazard", "a moving average of counts and of sums"),
        "A batch with 1 vector of a code weighs as much as one with 99: codes follow rare, noisy batches.",
        "e = m/n, with m the average of sums and n that of counts",
    ),
    "idle codes": (
        *(12, "fault", "codes that nothing chose keep their place"),
        "The start is lost for every code that the first batch does not choose.",
        "begin with n = 1 and m = the codebook, and leave rows without vectors alone",
    ),
    "fading": (
        *(12, "hazard", "codes that nothing chose keep their place"),
        "Rare codes are lost in long training: decayed sums underflow, or fall below the smoothing constant.",
        "update only rows that were chosen: e += (1 - d)/n * sum(z - e)",
    ),
    "half": (
        *(12, "hazard", "an average that goes on"),
        "Steps smaller than half a unit in the last place are rounded away: the average stalls.",
        "keep the codebook and its averages in float32",
    ),
    "zero rows": (
        *(13, "fault", "no zero rows after a start from data"),
        "They are hardly ever chosen where data lies off the origin: the codebook is that much smaller.",
        "fill up with vectors of the batch, slightly moved",
    ),
    "seed": (
        *(13, "hazard", "a start that the layer's state and the vectors decide"),
        "Ranks start apart unless they are synchronised, and a run is not repeated by its own seed.",
        "a generator of its own, seeded from the state",
    ),
    "forgotten start": (
        *(13, "fault", "the step after a start from data continues from it"),
        "Sums that remain from before the start overwrite it.",
        _SUMS,
    ),
    "revival": (
        *(14, "fault", "a revived code stays where it was put until it is chosen"),
        "Sums of the old place overwrite it: dead codes stay dead.",
        _SUMS,
    ),
    "memory": (
        *(14, "hazard", "a revived code stays where it was put until it is chosen"),
        "The optimizer's memory of the old row drags the new one away from its vector.",
        "zero the row in optimizer.state, as vqkit.step(model, optimizer) does",
    ),
    "threshold": (
        *(14, "hazard", "codes that are all chosen equally often live, whatever the batch size"),
        "The threshold is a count per step, so small batches replace live codes.",
        "count a code's age in vectors since it was chosen: vqkit.Reseed(after=20)",
    ),
    "drawn": (
        *(3, "fault", "the same result for the same state and vectors"),
        "Codes are drawn, not found: one input has several results.",
        "no noise in evaluation; in training a generator seeded from the state",
    ),
    "pickle": (
        *(17, "fault", "a state of tensors alone"),
        "To load it one must unpickle, which runs whatever code the file holds.",
        "keep configuration out of the state_dict",
    ),
    "not saved": (
        *(17, "fault", "the same codes and the same next steps after a load"),
        "Some of what decides is not saved: a resumed run learns otherwise than one that was not stopped.",
        "register_buffer for sums, counts and flags",
    ),
    "lenient": (
        *(17, "hazard", "a strict load refuses a state in which an entry is missing"),
        "A renamed or damaged file loads in silence, and the layer goes on with what was drawn.",
        "do not clear missing_keys in _load_from_state_dict",
    ),
    "overwritten": (
        *(17, "fault", "a codebook that was drawn, set or loaded stays until vectors move it"),
        "Sums that are kept beside the codebook, and do not agree with it, overwrite it.",
        _SUMS,
    ),
}  # fmt: skip


def finding(name: str, measured: str, severity: Severity | None = None, rank: int | None = None) -> Finding:
    """The finding of this name; its severity and rank are the usual one and the law's number unless they are given."""
    number, usual, expected, why, fix = FINDINGS[name]
    if rank is None:
        rank = number + 10 * (number in (15, 16))  # what bad input does comes after what good input shows
    return Finding(law(number), severity or usual, expected, measured, why, fix, rank)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
