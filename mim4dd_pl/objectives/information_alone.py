"""No host at all: the information term on its own."""

from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.synthetic import TrainingImages
from mim4dd_pl.stored.segments import Spans


class InformationAlone(Objective):
    """Matches nothing; shows the information term an expert, so that what the term does by itself can be seen.

    Its loss is zero, so a term balanced by gradient norms has nothing to be a share of: its weight then counts as such.

    Args:
        max_start_epoch: Experts are shown at an epoch in 1..max_start_epoch.
    """

    def __init__(self, max_start_epoch: int) -> None:
        self.epochs = Spans(max_start_epoch, 1)

    def __repr__(self) -> str:
        return f"InformationAlone({self.epochs})"

    def work(self, images_per_class: int, num_classes: int) -> Work:
        return Work(images_per_class * num_classes, gradients=0)

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        target = scene.segments.target
        nothing = (0.0 * synthetic.images.sum()).expand(len(target))
        return Match(nothing, target, target)
