"""SGD in Caffe's form, on flat vectors."""

import torch

PIECE = 1 << 17  # elements updated at a time on a CPU, so that the three vectors pass through the cache once, not four times


class SGD:
    """h <- rate (g + decay w) + m h;  w <- w - h, with the rate inside the momentum buffer h, as in Caffe.

    Momentum correction multiplies m by rate / previous rate; Caffe does so in warm-up only, and the released code skips
    it on the fused path that icc and g++ >= 4.9 build (the authors' compiler is not recorded). Applied at every step, it
    is equivalent to torch.optim.SGD, where the rate is outside the buffer.
    """

    def __init__(self, weights: torch.Tensor, momentum: float, decayed: int | None = None):
        """`weights` (P,) is updated in place; only its first `decayed` elements decay (default: all)."""
        self.weights, self.momentum, self.decayed = weights, momentum, decayed
        self.history = torch.zeros_like(weights)
        self.piece = len(weights) if weights.is_cuda else PIECE

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float, weight_decay: float, previous_rate: float = 0.0) -> None:
        """One update by `gradient` (P,), which is overwritten; a nonzero `previous_rate` enables the momentum correction."""
        momentum = self.momentum * rate / previous_rate if previous_rate else self.momentum
        decayed = len(gradient) if self.decayed is None else self.decayed
        for start in range(0, len(gradient), self.piece):
            g, w, h = (vector[start : start + self.piece] for vector in (gradient, self.weights, self.history))
            g[: max(0, decayed - start)].add_(w[: max(0, decayed - start)], alpha=weight_decay)
            h.mul_(momentum).add_(g, alpha=rate)
            w.sub_(h)
