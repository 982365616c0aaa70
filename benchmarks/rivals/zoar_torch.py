"""ZoAR as a PyTorch training loop, in the manner and settings of the paper's code.

``loop_step`` asks for one value at a time, as a research script does; ``batched_step``
does the same sums with a tensor of K directions, the strongest form that the same loop
takes in eager PyTorch. Both spend a query on f(theta) to log it.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch


def quadratic(x: torch.Tensor) -> torch.Tensor:
    """|x|^2 / 2, over the last axis."""
    return 0.5 * (x**2).sum(-1)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    """Rosenbrock's function, over the last axis."""
    left, right = x[..., :-1], x[..., 1:]
    return (100 * (right - left**2) ** 2 + (1 - left) ** 2).sum(-1)


def cos_turns(x: torch.Tensor) -> torch.Tensor:
    """cos(2 pi x), by the same series as ours, so that f costs the same arithmetic."""
    y = math.pi * (x - torch.round(x))
    t = y**2
    tail = 1 - t / 42 * (1 - t / 72 * (1 - t / 110))
    return 1 - 2 * (y * (1 - t / 6 * (1 - t / 20 * tail))) ** 2


def levy(x: torch.Tensor) -> torch.Tensor:
    """Levy's function, over the last axis."""
    w = 1 + (x - 1) / 4
    inner, last = w[..., :-1], w[..., -1]
    squared_sine = lambda turns: (1 - cos_turns(turns)) / 2
    body = (inner - 1) ** 2 * (1 + 10 * squared_sine(inner + 1 / math.pi))
    end = (last - 1) ** 2 * (1 + squared_sine(2 * last))
    return squared_sine(w[..., 0]) + body.sum(-1) + end


def ackley(x: torch.Tensor) -> torch.Tensor:
    """Ackley's function, over the last axis."""
    funnel = 20 * torch.exp(-0.2 * torch.sqrt((x**2).mean(-1)))
    return 20 + math.e - funnel - torch.exp(cos_turns(x).mean(-1))


FUNCTIONS = {f.__name__: f for f in (quadratic, rosenbrock, levy, ackley)}


class Run(NamedTuple):
    """A run of ZoAR, changed in place by its steps."""

    theta: torch.Tensor
    m: torch.Tensor
    s: torch.Tensor
    history: deque  # pairs (direction, value), or (K directions, K values)
    losses: list  # f(theta) before each step


def start(dimension: int, num_records: int, seed: int, device: str = "cpu") -> Run:
    """theta_0 ~ N(0, I) and an empty history of at most num_records records."""
    torch.manual_seed(seed)
    theta = torch.randn(dimension, device=device)
    zeros = torch.zeros_like(theta)
    return Run(theta, zeros, zeros.clone(), deque(maxlen=num_records), [])


def _descend(run: Run, gradient: torch.Tensor, learning_rate: float) -> None:
    """R-AdaZO with betas 0.9 and 0.99."""
    run.m.mul_(0.9).add_(gradient, alpha=0.1)
    run.s.mul_(0.99).addcmul_(run.m, run.m, value=0.01)
    run.theta.addcdiv_(run.m, run.s.sqrt() + 1e-8, value=-learning_rate)


Function = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def loop_step(run: Run, f: Function, k: int, smoothing: float, rate: float) -> None:
    """One step, a direction at a time; the history holds (N + 1) K pairs."""
    run.losses.append(f(run.theta).item())
    for _ in range(k):
        u = torch.randn_like(run.theta)
        run.history.append((u, f(run.theta + smoothing * u)))
    baseline = sum(y for _, y in run.history) / len(run.history)
    gradient = torch.zeros_like(run.theta)
    for u, y in run.history:
        gradient += (y - baseline) / smoothing * u
    _descend(run, gradient / len(run.history), rate)


@torch.no_grad()
def batched_step(run: Run, f: Function, k: int, smoothing: float, rate: float) -> None:
    """One step with matrices; the history holds N + 1 records of K pairs."""
    run.losses.append(f(run.theta).item())
    u = torch.randn(k, run.theta.numel(), device=run.theta.device)
    run.history.append((u, f(run.theta + smoothing * u)))
    values = torch.cat([y for _, y in run.history])
    baseline = values.mean()
    gradient = torch.zeros_like(run.theta)
    for u, y in run.history:
        gradient += (y - baseline) @ u
    _descend(run, gradient / (smoothing * len(values)), rate)
