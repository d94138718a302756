"""What a training set is worth: the accuracy of fresh networks trained on it, on images they have not seen."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from mim4dd_pl.data.catalog import Batch, Indexable
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.population import Training, train
from mim4dd_pl.randomness import Stream


class Classifiers:
    """Trained networks of one architecture, and how many images each classifies correctly.

    Args:
        network: Their architecture.
        parameters: One vector of shape (P,) for each.
    """

    def __init__(self, network: FlatNetwork, parameters: Sequence[Tensor]) -> None:
        self.network = network
        self.parameters = parameters
        # Every rank may evaluate networks of its own, so the counts are not summed over ranks.
        self._metrics = [
            MulticlassAccuracy(network.num_classes, average="micro", sync_on_compute=False).to(theta.device)
            for theta in parameters
        ]

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Classify one batch of held-out images."""
        for theta, metric in zip(self.parameters, self._metrics, strict=True):
            metric.update(self.network(theta, batch.images), batch.labels)

    def accuracies(self) -> Tensor:
        """Fraction of correct answers of each network so far, shape (len(parameters),), in [0, 1]."""
        return torch.stack([metric.compute() for metric in self._metrics]).cpu()


def train_students(
    network: FlatNetwork,
    images: Indexable,
    training: Training,
    num_students: int,
    stream: Stream,
    device: torch.device,
) -> Classifiers:
    """Fresh networks trained on ``images``.

    Args:
        network: Their architecture.
        images: The set, on ``device``.
        training: How each is trained.
        num_students: How many, at least 1.
        stream: Decides initialisations, order and augmentation; the same stream gives every set the same students.
        device: Where they are trained.
    """
    parameters = []
    # Lightning validates without gradients, and may do so in inference mode.
    with torch.inference_mode(False):
        for number in range(num_students):
            student = stream.at("student", number)
            theta = network.initial(student.at("initial")).to(device)
            for theta in train(network, theta, images, training, student):
                pass
            parameters.append(theta)
    return Classifiers(network, parameters)
