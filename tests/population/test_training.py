"""Training in flat form equals torch's own optimiser, and experts are functions of their seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.cutmix import cutmix
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.population.evaluator import Evaluator, Protocol
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training, train
from mim4dd_pl.stored.trajectories import TrajectoryStore
from tests.conftest import randn, to_module


@pytest.fixture
def images(stream: Stream) -> InMemory:
    return InMemory(randn(stream.at("images"), 10, 1, 4, 4), torch.arange(10) % 3)


@pytest.mark.parametrize(
    "training",
    [
        Training(epochs=4, batch_size=4, lr=0.1),
        Training(epochs=4, batch_size=3, lr=0.1, momentum=0.9, weight_decay=0.01, decay_at_half=True),
    ],
)
def test_training_equals_torchs_sgd(network: FlatNetwork, images: InMemory, training: Training, stream: Stream) -> None:
    theta = network.initial(stream.at("initial")).double()
    module = to_module(network, theta)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    for epoch, ours in enumerate(train(Derivatives(network), theta[None], [images], training, [stream])):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 if not training.decay_at_half or epoch < 2 else 0.01
        order = torch.randperm(10, generator=stream.at("order", epoch).generator())
        for chosen in order.split(training.batch_size):
            optimizer.zero_grad()
            cross_entropy(module(images.images[chosen]), images.labels[chosen]).backward()
            optimizer.step()
        torch.testing.assert_close(ours[0], network.flatten(module))


def test_sharpness_aware_steps_take_the_gradient_uphill(network: FlatNetwork, images: InMemory, stream: Stream) -> None:
    """One step on all images: theta - lr * grad(theta + rho g / |g|), for two networks at once."""
    theta = torch.stack([network.initial(stream.at(number)).double() for number in range(2)])
    engine = Derivatives(network)
    x, y = images.images.expand(2, -1, -1, -1, -1), images.labels.expand(2, -1)
    training = Training(epochs=1, batch_size=10, lr=0.1, sharpness_radius=0.5)
    (ours,) = train(engine, theta, [images, images], training, [stream, stream])
    for k in range(2):
        g = engine.gradient(theta[k : k + 1], x[:1], y[:1])
        uphill = theta[k : k + 1] + 0.5 * g / g.norm()
        torch.testing.assert_close(ours[k], theta[k] - 0.1 * engine.gradient(uphill, x[:1], y[:1])[0])


def test_experts_know_every_setting_of_network_and_training(network: FlatNetwork) -> None:
    training = Training(epochs=1, sharpness_radius=0.1, augment=DSA(["crop"]))
    spec = Experts("unused", training).spec(network, "digits", "0a")
    convnet = {"depth": 1, "width": 4, "norm": "instance", "pooling": "avg", "activation": "relu"}
    assert spec.network == {"class": "ConvNet", **convnet}
    plain = {"lr_drops": [], "augment": {"class": "DSA", "operations": ["crop"]}}
    assert spec.training == {"class": "Training", **vars(training), **plain}


def test_training_augments_as_its_stream_says(network: FlatNetwork, images: InMemory, stream: Stream) -> None:
    theta, augment = network.initial(stream).double(), DSA(["crop"])
    (ours,) = train(Derivatives(network), theta[None], [images], Training(1, 10, 0.1, augment=augment), [stream])
    order = torch.randperm(10, generator=stream.at("order", 0).generator())
    augmented = InMemory(augment(images.images[order], stream.at("augment", 0, 0)), images.labels[order])
    (expected,) = train(Derivatives(network), theta[None], [augmented], Training(1, 10, 0.1), [stream])
    torch.testing.assert_close(ours, expected)


def test_cutmix_comes_after_the_augmentation_as_its_stream_says(
    network: FlatNetwork, images: InMemory, stream: Stream
) -> None:
    """One step on all images, of classes or of soft labels."""
    theta, augment = network.initial(stream).double(), DSA(["crop"])
    order = torch.randperm(10, generator=stream.at("order", 0).generator())
    hot = one_hot(images.labels, 3).double()
    soft = randn(stream.at("labels"), 10, 3).softmax(1)
    for given, expected_labels in ((images.labels, hot), (soft, soft)):
        training = Training(1, 10, 0.1, augment=augment, cutmix=1.0)
        (ours,) = train(Derivatives(network), theta[None], [InMemory(images.images, given)], training, [stream])
        cropped = augment(images.images[order], stream.at("augment", 0, 0))
        mixed = cutmix(cropped, expected_labels[order], 1.0, stream.at("cutmix", 0, 0))
        torch.testing.assert_close(ours, theta - 0.1 * plain_gradient(network, theta, *mixed))


def plain_gradient(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Of torch's cross-entropy, shape (1, P)."""
    module = to_module(network, theta)
    cross_entropy(module(images), labels).backward()
    return torch.cat([part.grad.flatten() for part in module.parameters() if part.grad is not None])[None]


def test_with_cutmix_every_minibatch_has_soft_labels_and_one_hot_ones_teach_what_classes_teach(
    network: FlatNetwork, images: InMemory, stream: Stream
) -> None:
    """A probability so low that nothing is mixed: the same parameters, and one kind of labels to compile for."""
    kinds: list[torch.dtype] = []

    class Spy(Derivatives):
        def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            kinds.append(labels.dtype)
            return super().gradient(theta, images, labels)

    theta = network.initial(stream).double()[None]
    trained = [
        list(train(Spy(network), theta, [images], Training(3, 4, 0.1, momentum=0.9, cutmix=probability), [stream]))[-1]
        for probability in (0.0, 1e-12)
    ]
    assert kinds == 9 * [torch.int64] + 9 * [torch.float64]
    torch.testing.assert_close(*trained, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("epochs", "settings", "milestones"),
    [
        (60, {"lr_drops": (0.6667, 0.8333), "lr_factor": 0.2}, [40, 50]),
        (10, {"lr_drops": (0.25, 0.5, 0.75)}, [2, 5, 7]),
        (4, {"lr_drops": (0.5,), "decay_at_half": True, "lr_factor": 0.5}, [2]),
        (8, {"lr_drops": (0.75,), "decay_at_half": True}, [4, 6]),
        (3, {}, []),
    ],
)
def test_the_learning_rate_drops_as_torchs_scheduler_drops_it(
    epochs: int, settings: dict[str, Any], milestones: list[int]
) -> None:
    training = Training(epochs, lr=0.3, **settings)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, training.lr_factor)
    for epoch in range(epochs):
        assert training.lr_of(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("epochs", range(1, 12))
def test_a_drop_at_half_is_a_tenth_from_the_middle_on(epochs: int) -> None:
    """Of an odd number of epochs the middle one counts to the second half. To the bit."""
    for training in (Training(epochs, lr=0.3, decay_at_half=True), Training(epochs, lr=0.3, lr_drops=(0.5,))):
        assert [training.lr_of(epoch) for epoch in range(epochs)] == [
            0.3 * (0.1 if epoch >= epochs // 2 else 1.0) for epoch in range(epochs)
        ]


def test_a_trajectory_starts_at_the_initialisation_and_has_one_row_per_epoch(
    network: FlatNetwork, images: InMemory, training: Training
) -> None:
    experts = Experts("unused", training, num_experts=2, seed=5)
    images = InMemory(images.images.float(), images.labels)
    derivatives, device = Derivatives(network), torch.device("cpu")
    (trajectory,) = experts.train([1], derivatives, images, device)
    assert trajectory.shape == (4, network.num_parameters)
    assert torch.equal(trajectory[0], network.initial(Stream(5).at("expert", 1, "initial")))
    assert torch.equal(trajectory, experts.train([1], derivatives, images, device)[0])
    assert not torch.equal(trajectory, experts.train([0], derivatives, images, device)[0])


@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_a_population_equals_single_trainings(
    network: FlatNetwork, images: InMemory, stream: Stream, cutmix: float
) -> None:
    """Three networks at once on sets of their own, each as if it were alone."""
    training = Training(3, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.01, augment=DSA(), cutmix=cutmix)
    streams = [stream.at("student", number) for number in range(3)]
    theta = torch.stack([network.initial(each.at("initial")) for each in streams]).double()
    sets = [InMemory(images.images.roll(number, 0), images.labels) for number in range(3)]
    for together, *alone in zip(
        train(Derivatives(network), theta, sets, training, streams),
        *(
            train(Derivatives(network), theta[k : k + 1], sets[k : k + 1], training, streams[k : k + 1])
            for k in range(3)
        ),
        strict=True,
    ):
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-12)


def test_missing_experts_are_those_that_the_store_lacks(
    network: FlatNetwork, training: Training, tmp_path: Path
) -> None:
    experts = Experts(str(tmp_path), training, num_experts=3)
    store = TrajectoryStore(tmp_path, experts.spec(network, "digits", "0a"))
    store.add(1, torch.zeros(4, network.num_parameters))
    assert experts.missing(store) == [0, 2]


def test_students_start_alike_whatever_their_set(
    network: FlatNetwork, images: InMemory, training: Training, stream: Stream
) -> None:
    images = InMemory(images.images.float(), images.labels)
    other = InMemory(images.images.flip(0), images.labels)
    evaluator = Evaluator(Protocol(training), network, stream, torch.device("cpu"), tuple)
    first, second = (evaluator.train([each, images]).classifiers.parameters for each in (images, other))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "^epochs must be at least 1, got 0"),
        ({"epochs": 1, "lr": 0.0}, "^lr must be positive and finite, got 0.0"),
        ({"epochs": 1, "lr": float("nan")}, "^lr must be positive and finite, got nan"),
        ({"epochs": 1, "momentum": 1.0}, r"^momentum must lie in \[0, 1\)"),
        ({"epochs": 9, "lr_drops": (0.8, 0.5)}, r"^lr_drops must rise within \(0, 1\), got \[0\.8, 0\.5\]"),
        ({"epochs": 9, "lr_drops": (0.5, 0.5)}, r"^lr_drops must rise within \(0, 1\), got \[0\.5, 0\.5\]"),
        ({"epochs": 9, "lr_drops": (0.0,)}, r"^lr_drops must rise within \(0, 1\), got \[0\.0\]"),
        ({"epochs": 9, "lr_drops": (0.5, 1.0)}, r"^lr_drops must rise within \(0, 1\), got \[0\.5, 1\.0\]"),
        ({"epochs": 9, "lr_drops": (float("nan"),)}, r"^lr_drops must rise within \(0, 1\), got \[nan\]"),
        ({"epochs": 9, "lr_factor": 0.0}, r"^lr_factor must lie in \(0, 1\], got 0\.0"),
        ({"epochs": 9, "lr_factor": 1.5}, r"^lr_factor must lie in \(0, 1\], got 1\.5"),
        ({"epochs": 9, "cutmix": -0.1}, r"^cutmix must be a probability in \[0, 1\], got -0\.1"),
        ({"epochs": 9, "cutmix": 1.5}, r"^cutmix must be a probability in \[0, 1\], got 1\.5"),
        ({"epochs": 9, "cutmix": float("nan")}, r"^cutmix must be a probability in \[0, 1\], got nan"),
    ],
)
def test_training_refuses_settings_that_cannot_train(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**settings)
