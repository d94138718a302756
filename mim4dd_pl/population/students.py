"""What a training set is worth: the accuracy of fresh networks trained on it, on images they have not seen."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, Indexable
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.batchnorm import Statistics
from mim4dd_pl.population.scores import accuracies
from mim4dd_pl.population.training import Training, at_once, train


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


def train_students(
    derivatives: Derivatives,
    sets: Sequence[Indexable],
    training: Training,
    stream: Stream,
    device: torch.device,
    share: range | None = None,
) -> Classifiers:
    """Fresh networks, one trained on each of ``sets``.

    Args:
        derivatives: Of their loss.
        sets: What each student is trained on, equally long, on ``device``; the same set n times for n students of one.
        training: How each is trained.
        stream: Decides initialisations, order and augmentation: student number i starts the same whatever its set.
        device: Where they are trained.
        share: Numbers of those that are trained here; all by default.
    """
    share = range(len(sets)) if share is None else share
    parameters: list[Tensor] = []
    # Lightning validates without gradients, and may do so in inference mode.
    with torch.inference_mode(False):
        for start in range(0, len(share), at_once(device)):
            numbers = share[start : start + at_once(device)]
            students = [stream.at("student", number) for number in numbers]
            fresh = torch.stack([derivatives.network.initial(student.at("initial")) for student in students])
            chosen = [sets[number] for number in numbers]
            (trained,) = deque(train(derivatives, fresh.to(device), chosen, training, students), maxlen=1)
            parameters.extend(trained)
    network, size = derivatives.network, training.batch_size
    own = [sets[number] for number in share]
    statistics = [calibrated(network, theta, each, size) for theta, each in zip(parameters, own, strict=True)]
    return Classifiers(network, parameters, statistics, share, len(sets))
