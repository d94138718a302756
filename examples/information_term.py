"""The information term in a plain PyTorch loop: distribution matching on the digits, ten images, some seconds."""

import torch
from torch import Tensor, nn

import mim4dd_pl as dd
from mim4dd_pl.data.sources import Digits


def fresh_network() -> nn.ModuleList:
    """Two blocks, whose outputs are the layers that the term compares."""
    widths = [(1, 32), (32, 32)]
    blocks = [(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(b, b), nn.ReLU(), nn.AvgPool2d(2)) for a, b in widths]
    return nn.ModuleList(nn.Sequential(*block) for block in blocks)


def main(share: float = 0.3, steps: int = 300) -> Tensor:
    """Learned images, standardised, shape (10, 1, 8, 8); with ``share`` 0 by the host alone."""
    torch.manual_seed(0)
    split, _ = Digits().load()
    real = torch.cat(list(split.chunks)).float() / 255
    real = (real - real.mean()) / real.std()
    classes = [real[split.labels == label] for label in range(10)]
    images, labels = torch.stack([members[0] for members in classes]).requires_grad_(), torch.arange(10)
    term = dd.InformationTerm(layer_shapes=[(32, 4, 4), (32, 2, 2)], num_classes=10)
    optimizers = torch.optim.SGD([images], lr=0.3, momentum=0.5), torch.optim.Adam(term.parameters(), lr=1e-3)
    for _ in range(steps):
        maps, real_maps = [images], [torch.cat([members[torch.randperm(len(members))[:32]] for members in classes])]
        for block in fresh_network().requires_grad_(False):
            maps.append(block(maps[-1]))
            real_maps.append(block(real_maps[-1]))
        host = (maps[-1] - real_maps[-1].unflatten(0, (10, 32)).mean(1)).square().sum()
        information = term(maps[1:], real_maps[1:], labels, labels.repeat_interleave(32))
        term.zero_grad()
        images.grad = None
        dd.balanced_backward(host, information.loss, images, share)
        for optimizer in optimizers:
            optimizer.step()
    return images.detach()


if __name__ == "__main__":
    print("learned images:", tuple(main().shape))
