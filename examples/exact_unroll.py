"""The exact gradient of an own network's training loop with respect to its training images, in constant memory."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mim4dd_pl as dd
from mim4dd_pl.data.sources import Digits


def main(outer_steps: int = 100, inner_steps: int = 20) -> tuple[Tensor, list[float]]:
    """Ten learned images, shape (10, 1, 8, 8), and the loss on real images after each outer step."""
    torch.manual_seed(0)
    split, _ = Digits().load()
    real = torch.cat(list(split.chunks)).float() / 255
    images = torch.stack([real[split.labels == label][0] for label in range(10)]).requires_grad_()
    labels, lr = torch.arange(10), torch.tensor(0.1, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [images], "lr": 0.02}, {"params": [lr], "lr": 0.002}])
    losses = []
    for _ in range(outer_steps):
        model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(144, 10))
        theta = dd.unroll(model, images, labels, lr, inner_steps)  # (P,), differentiable in images and lr
        parameters = dd.FlatNetwork.of(model, (1, 8, 8)).unflatten(theta)
        loss = nn.functional.cross_entropy(functional_call(model, parameters, (real,)), split.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return images.detach(), losses


if __name__ == "__main__":
    for step, loss in enumerate(main()[1]):
        if step % 20 == 0:
            print(f"step {step}: loss {loss:.3f} on real images")
