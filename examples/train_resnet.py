"""Train torchvision's ResNet-18 on a distilled set and test it on real images.

After ``mim4dd fit -c digits``: ``python examples/train_resnet.py checkpoints/digits/version_0/distilled/best``
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from mim4dd_pl import DistilledDataset
from mim4dd_pl.data.sources import Digits


def main(folder: str, epochs: int = 100) -> float:
    """Accuracy on the digits' test images, in [0, 1]."""
    data = DistilledDataset(folder)
    torch.manual_seed(0)
    # Ten images are too few for batch norm; small ones need no stride and no pooling before the first block.
    model = resnet18(num_classes=len(data.classes), norm_layer=lambda channels: nn.GroupNorm(8, channels))
    model.conv1 = nn.Conv2d(data.images.shape[1], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=256, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    _, test = Digits().load()
    images = torch.cat(list(test.chunks)).float() / 255
    model.eval()
    with torch.no_grad():
        correct = model(data.normalize(images)).argmax(1) == test.labels
    return float(correct.float().mean())


if __name__ == "__main__":
    print(f"test accuracy {100 * main(sys.argv[1]):.1f} %")
