"""What training sets are worth: fresh students trained on them, scored on images that they have not seen.

A row of a table is made in two steps: :meth:`Evaluator.train` trains K students, one on each of K sets, and
:meth:`Evaluator.test` has them classify the test images. All rows start from the same K initialisations, so they differ
by their sets and not by the luck of the draw.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, Indexable
from mim4dd_pl.engine.compiled import Compile, derivatives, worth_compiling
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.population.scores import Score
from mim4dd_pl.population.students import Classifiers, calibrated
from mim4dd_pl.population.training import Training, at_once, train
from mim4dd_pl.stored.distilled import Distilled

LearningRates = list[float] | Literal["learned"] | None
"""In place of a training's own: several to choose from, or the one that was learned with the images."""

Batches = Callable[[], Iterable[Batch]]
"""Held-out images from the first to the last, on the device of the students."""


@dataclass(frozen=True)
class Protocol:
    """How many students are trained, and how.

    Args:
        training: How each is trained.
        num_students: K.
        lrs: Instead of ``training.lr``: ``learned`` is the learning rate that was learned with the images (sets that
            have none keep ``training.lr``); of several, the best on the validation images counts.
    """

    training: Training
    num_students: int = 5
    lrs: LearningRates = None

    def candidates(self, learned_lr: float | None = None) -> list[float]:
        """The learning rates to try on a set that may have learned one."""
        if isinstance(self.lrs, list):
            return self.lrs
        return [self.training.lr if learned_lr is None or self.lrs is None else learned_lr]

    @property
    def epochs(self) -> int:
        """Of one row: those of its students, at every learning rate that is tried, added up."""
        return len(self.candidates()) * self.num_students * self.training.epochs


class Students(NamedTuple):
    """This process's share of the students of a row, the images that each was trained on, and its learning rate."""

    classifiers: Classifiers
    images: int
    lr: float


@dataclass
class Evaluator:
    """Trains students on given sets and scores them; compiles once for all sets of one size.

    Args:
        protocol: How students are trained.
        network: Their architecture, where no other is asked for.
        stream: Decides their initialisations, order and augmentation.
        device: Where they are trained.
        test_images: Which students are scored on.
        validation_images: On which learning rates are chosen; not read where there is nothing to choose.
        compile: Compile their steps: ``auto`` where it pays.
        times: How often K students are trained by ``protocol`` on sets of one size, which decides whether it pays.
        share: Those below a number of students that this process trains; all of them by default.
        added_up: The sum of a tensor over all processes; by default over this one.
        compiled: What was decided about compiling: with the decisions of a checkpoint, a run computes as it did before.
    """

    protocol: Protocol
    network: FlatNetwork
    stream: Stream
    device: torch.device
    test_images: Batches
    validation_images: Batches = tuple
    compile: Compile = False
    times: int = 1
    share: Callable[[int], range] = range
    added_up: Callable[[Tensor], Tensor] = torch.clone
    compiled: dict[str, bool] = field(default_factory=dict)
    _derivatives: dict[tuple[str, bool], Derivatives] = field(default_factory=dict)

    def alone(self) -> "Evaluator":
        """The same in one process, whatever the others do."""
        return replace(self, share=range, added_up=torch.clone)

    def derivatives(
        self, num_images: int, training: Training | None = None, network: FlatNetwork | None = None
    ) -> Derivatives:
        """What trains the students on sets of so many images; arguments as in :meth:`train`."""
        times = self.times if training is None and network is None else 1
        training, network = training or self.protocol.training, network or self.network
        size = min(training.batch_size, num_images)
        sizes = f"{num_images} images in batches of {size}, {network.name}"
        key = f"{training.epochs} epochs of {sizes}"
        if key not in self.compiled:
            work = training.work(num_images, times * self.protocol.num_students)
            self.compiled[key] = worth_compiling(network, self.compile, work)
        engine = sizes, self.compiled[key]  # one, whatever the epochs
        if engine not in self._derivatives:
            self._derivatives[engine] = derivatives(network, self.compiled[key], size, self.device)
        return self._derivatives[engine]

    def train(
        self,
        sets: Sequence[Indexable],
        training: Training | None = None,
        network: FlatNetwork | None = None,
        learned_lr: float | None = None,
    ) -> Students:
        """One student on each of ``sets``.

        Args:
            sets: Equally long, on the device; the same set K times for K students of one.
            training: In place of the protocol's; its learning rate is taken as it is.
            network: In place of the evaluator's.
            learned_lr: Of the sets, if they have one.
        """
        engine = self.derivatives(len(sets[0]), training, network)
        lrs = self.protocol.candidates(learned_lr) if training is None else [training.lr]
        recipes = [replace(training or self.protocol.training, lr=lr) for lr in lrs]
        rows = (Students(self._train(engine, sets, recipe), len(sets[0]), recipe.lr) for recipe in recipes)
        if len(recipes) == 1:
            return next(rows)
        best = max(rows, key=lambda students: self.validate(f"lr {students.lr}", students).mean)
        best.classifiers.reset()
        return best

    def _train(self, engine: Derivatives, sets: Sequence[Indexable], training: Training) -> Classifiers:
        """This process's share of the students; number i starts the same whatever its set."""
        network, share, together = engine.network, self.share(len(sets)), at_once(self.device)
        parameters: list[Tensor] = []
        # Lightning validates without gradients, and may do so in inference mode.
        with torch.inference_mode(False):
            for start in range(0, len(share), together):
                numbers = share[start : start + together]
                streams = [self.stream.at("student", number) for number in numbers]
                fresh = torch.stack([network.initial(stream.at("initial")) for stream in streams]).to(self.device)
                chosen = [sets[number] for number in numbers]
                (trained,) = deque(train(engine, fresh, chosen, training, streams), maxlen=1)
                parameters.extend(trained)
        own = zip(parameters, [sets[number] for number in share], strict=True)
        statistics = [calibrated(network, theta, images, training.batch_size) for theta, images in own]
        return Classifiers(network, parameters, statistics, share, len(sets))

    def train_on(self, distilled: Distilled, network: FlatNetwork | None = None) -> Students:
        """All students on a distilled set."""
        sets = [distilled.training_set(self.device)] * self.protocol.num_students
        return self.train(sets, network=network, learned_lr=float(distilled.student_lr))

    def validate(self, trained_on: str, students: Students) -> Score:
        """Show the validation images to students that have not seen any image yet; ``trained_on`` names the row."""
        return self._shown(self.validation_images, trained_on, students)

    def test(self, trained_on: str, students: Students) -> Score:
        """The same with the test images."""
        return self._shown(self.test_images, trained_on, students)

    def _shown(self, images: Batches, trained_on: str, students: Students) -> Score:
        for batch in images():
            students.classifiers.update(batch)
        return self.score(trained_on, students)

    def score(self, trained_on: str, students: Students) -> Score:
        """What the students made of the images that they were shown."""
        confusion = self.added_up(students.classifiers.confusion())
        return Score(trained_on, students.classifiers.network.name, students.images, students.lr, confusion)
