"""An own data set, network and host; in this folder ``mim4dd fit -c own_parts.yaml`` finds them."""

import torch
from torch import nn

from mim4dd_pl.data.sources import Source, Split
from mim4dd_pl.engine.derivatives import Work
from mim4dd_pl.networks.base import Network
from mim4dd_pl.objectives.base import Match, Objective
from mim4dd_pl.objectives.sampling import fresh, real_batch


class Stripes(Source):  # lying or standing, in noise
    name, image_shape, classes = "stripes", (1, 8, 8), ("lying", "standing")

    def load(self):
        labels, lying = torch.arange(600) % 2, (torch.arange(8) % 4 < 2).expand(8, 8).T
        noise = torch.rand(600, 8, 8, generator=torch.Generator().manual_seed(0))
        images = (100 * noise + 50 * torch.stack([lying, lying.T])[labels]).byte()[:, None]
        return Split(labels[:400], [images[:400]]), Split(labels[400:], [images[400:]])


class OneConvolution(Network):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(image_shape[0], 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Linear(64, num_classes)

    def layers(self, images):
        return (self.block(images),)

    def forward(self, images):
        return self.classifier(self.block(images).flatten(1))


class Moments(Objective):  # first and second moments of each class's features, in fresh networks
    def work(self, images_per_class, num_classes):
        return Work(images_per_class * num_classes, gradients=0)

    def __call__(self, derivatives, synthetic, scene):
        network, losses = derivatives.network, []
        students = fresh(network, scene.streams, synthetic.images)
        for theta, stream in zip(students, scene.streams, strict=True):
            real = real_batch(scene.real, 64, stream)
            ours, theirs = (network.layers(theta, x)[-1].flatten(1) for x in (synthetic.images, real.images))
            means = [
                part.unflatten(0, (network.num_classes, -1)).mean(1) for part in (ours, ours**2, theirs, theirs**2)
            ]
            losses.append(sum((a - b).square().sum() for a, b in zip(means[:2], means[2:], strict=True)))
        return Match(torch.stack(losses), students, None)
