"""Efficient probing against its paper's formula in float64, and what makes its heads comparable."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.evaluation.efficient import Heads, weighted_loss
from dsdmae_cli.evaluation.updates import UPDATES, Optimizer

CPU = torch.device("cpu")
WIDTH, QUERIES, CLASSES = 24, 4, 5


class Reference(nn.Module):
    """As published: a learned class token per query, keys without a projection, values projected token by token."""

    def __init__(self, like: Heads, head: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(like.queries[head].detach().clone())
        # One matrix of all slices side by side.
        self.values = nn.Parameter(like.values[head].detach().permute(1, 0, 2).reshape(WIDTH, WIDTH).clone())
        self.norm = nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6).double()
        self.linear = nn.Linear(WIDTH, CLASSES).double()
        self.linear.weight.data.copy_(like.weight[head].detach().T)
        self.linear.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        attention = (self.queries @ x.transpose(1, 2) * d**-0.5).softmax(dim=-1)  # [b, M, n]
        values = (x @ self.values).reshape(b, n, QUERIES, d // QUERIES)
        gathered = torch.stack([attention[:, m, None] @ values[:, :, m] for m in range(QUERIES)], dim=1)
        return self.linear(self.norm(gathered.reshape(b, d)))


def heads(count: int) -> Heads:
    made = Heads(count, WIDTH, QUERIES, CLASSES, seed=3, device=CPU, dtype=torch.float64)
    # Away from first values that are alike in all heads.
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters[:3]:
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 9, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logits_and_gradients_are_the_papers() -> None:
    ours = heads(2)
    references = [Reference(ours, head) for head in range(2)]
    x, truth = tokens(30), torch.arange(30) % CLASSES
    for training in (True, False):
        logits = ours.logits(x, training=training)
        for head, reference in enumerate(references):
            torch.testing.assert_close(logits[head], reference.train(training)(x))
    loss = sum(F.cross_entropy(of_head, truth) for of_head in ours.logits(x, training=True))
    found = torch.autograd.grad(loss, ours.parameters)
    for head, reference in enumerate(references):
        F.cross_entropy(reference.train()(x), truth).backward()
        values = found[1][head].permute(1, 0, 2).reshape(WIDTH, WIDTH)
        for got, parameter in ((found[0][head], reference.queries), (values, reference.values)):
            torch.testing.assert_close(got, parameter.grad)
        torch.testing.assert_close(found[2][head].T, reference.linear.weight.grad)
        torch.testing.assert_close(found[3][head], reference.linear.bias.grad)


def test_a_weighted_loss_is_each_images_times_its_classs_weight() -> None:
    logits = torch.randn(3, 40, CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    truth = torch.arange(40) % 7 % CLASSES
    of_class = torch.rand(CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    by_hand = -sum(
        of_class[label] * head[row].log_softmax(dim=0)[label] for head in logits for row, label in enumerate(truth)
    )
    torch.testing.assert_close(weighted_loss(logits, truth, of_class), by_hand / 40)
    plain = sum(F.cross_entropy(head, truth) for head in logits)
    torch.testing.assert_close(weighted_loss(logits, truth, None), plain)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_every_head_moves_as_it_would_alone(name: Optimizer) -> None:
    """Against torch's and timm's optimisers, a rate to each head."""
    rates = (0.02, 0.5)
    together = heads(2)
    update = UPDATES[name](together.parameters[:3], together.parameters[3:])
    alone = [[p[head].detach().clone().requires_grad_() for p in together.parameters] for head in range(2)]
    made = {
        "lars": lambda p, lr: Lars([{"params": p[:3]}, {"params": p[3:], "always_adapt": False}], lr=lr, momentum=0.9),
        "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
    }
    optimizers = [made[name](parameters, rate) for parameters, rate in zip(alone, rates, strict=True)]
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in together.parameters]
        for head in range(2):
            for parameter, gradient in zip(alone[head], gradients, strict=True):
                parameter.grad = gradient[head].clone()
            if name == "lars":  # timm scales biases too; the protocol does not
                _lars_step(optimizers[head], alone[head], rates[head])
            else:
                optimizers[head].step()
        with torch.no_grad():
            update([g.clone() for g in gradients], torch.tensor(rates, dtype=torch.float64))
    for head in range(2):
        for got, expected in zip(together.parameters, alone[head], strict=True):
            torch.testing.assert_close(got[head], expected)


def _lars_step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], lr: float) -> None:
    """util/lars.py of facebookresearch/mae, written down again: no trust ratio for what has one dimension."""
    for parameter in parameters:
        assert parameter.grad is not None
        change = parameter.grad
        if parameter.ndim > 1:
            own, size = parameter.norm(), change.norm()
            change = change * (0.001 * own / size)
        state = optimizer.state[parameter]
        state["mu"] = state.get("mu", torch.zeros_like(parameter)) * 0.9 + change
        parameter.data -= lr * state["mu"]


def test_first_weights_are_alike_and_of_the_right_size() -> None:
    made = Heads(3, 128, 32, 10, seed=0, device=CPU)
    for parameter in made.parameters:
        assert (parameter == parameter[:1]).all()
    assert made.values.shape == (3, 32, 128, 4)
    assert made.queries.std().item() == pytest.approx(0.02, rel=0.05)
    assert made.values.abs().max() <= 1 / math.sqrt(128)
    assert Heads(1, 20, 32, 10, seed=0, device=CPU).values.shape == (1, 32, 20, 1)
    same, other = (Heads(1, 128, 32, 10, seed=seed, device=CPU) for seed in (0, 1))
    assert torch.equal(same.queries[0], made.queries[0])
    assert not torch.equal(other.queries[0], made.queries[0])
