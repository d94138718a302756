"""Trained networks, and how they classify images that they have not seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, Indexable
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.batchnorm import Statistics
from mim4dd_pl.population.scores import accuracies


class Classifiers:
    """Trained networks of one architecture, and how they classify held-out images.

    Args:
        network: Their architecture.
        parameters: One vector of shape (P,) for each.
        statistics: Of the batch norms of each, from :func:`calibrated`; none for networks without batch norm.
        places: Numbers of these networks among ``count``, the others being elsewhere; all of them by default.
        count: How many there are.
    """

    def __init__(
        self,
        network: FlatNetwork,
        parameters: Sequence[Tensor],
        statistics: Sequence[Statistics] | None = None,
        places: range | None = None,
        count: int | None = None,
    ) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # brings matplotlib and scipy along

        self.network = network
        self.parameters = parameters
        self.statistics = [{} for _ in parameters] if statistics is None else statistics
        self.places = range(len(parameters)) if places is None else places
        self.count = len(parameters) if count is None else count
        # Every rank may evaluate networks of its own, so the counts are not summed over ranks.
        self._metrics = [
            MulticlassConfusionMatrix(network.num_classes, validate_args=False, sync_on_compute=False).to(theta.device)
            for theta in parameters
        ]

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Classify one batch of held-out images."""
        for theta, statistics, metric in zip(self.parameters, self.statistics, self._metrics, strict=True):
            metric.update(self.network(theta, batch.images, statistics), batch.labels)

    def reset(self) -> None:
        """Forget the images seen so far."""
        for metric in self._metrics:
            metric.reset()

    def confusion(self) -> Tensor:
        """Images of class i (row) that each network took for class j (column) so far, shape (count, C, C), int64.

        Zeros where a network is elsewhere.
        """
        confusion = torch.zeros(self.count, self.network.num_classes, self.network.num_classes, dtype=torch.int64)
        for place, metric in zip(self.places, self._metrics, strict=True):
            confusion[place] = metric.compute()
        return confusion

    def accuracies(self) -> Tensor:
        """Fraction of correct answers of each network so far, shape (count,), in [0, 1]."""
        return accuracies(self.confusion())


def calibrated(network: FlatNetwork, theta: Tensor, images: Indexable, batch_size: int) -> Statistics:
    """Statistics of the batch norms of one trained network on up to eight whole minibatches of its training set.

    They are drawn without replacement and not augmented, the same for all networks.
    """
    order = torch.randperm(len(images), generator=Stream(0).at("calibration").generator()).to(theta.device)
    whole = order[: max(len(order) // batch_size, 1) * batch_size].split(batch_size)
    return network.calibrate(theta, (images.batch(chosen).images for chosen in whole[:8]))
