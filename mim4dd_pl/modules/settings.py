"""What a distillation refuses before anything is built or written."""

from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.objectives.base import Objective
from mim4dd_pl.objectives.synthetic import SoftLabels
from mim4dd_pl.population.experts import Experts


def check_experts(objective: Objective, experts: Experts, init: str, soft_labels: SoftLabels | None) -> None:
    """Refuse a host that reads epochs which experts do not have, and soft labels that no expert can start."""
    if objective.epochs is not None and objective.epochs.last > experts.training.epochs:
        raise ValueError(
            f"{type(objective).__name__} reads experts up to epoch {objective.epochs.last}, they are trained for "
            f"{experts.training.epochs}: raise model.experts.training.epochs, or lower the epochs of model.objective."
        )
    if soft_labels is not None and init != "real":
        raise ValueError("model.soft_labels start as an expert's view of real images: set model.init to real.")
    if soft_labels is not None and not objective.reads_experts:
        raise ValueError(
            f"model.soft_labels start as an expert's view, and {type(objective).__name__} reads no experts: take "
            "TrajectoryMatching, or leave model.soft_labels out."
        )


def check_information(information: InformationTerm, objective: Objective, segments_per_step: int) -> None:
    """Refuse a term that the host or its segments cannot serve."""
    if information.real_batch_size < segments_per_step:
        raise ValueError(
            f"model.information.real_batch_size must be at least model.segments_per_step, got "
            f"{information.real_batch_size} for {segments_per_step} segments."
        )
    if information.needs_expert and not objective.reads_experts:
        raise ValueError(
            f"model.information.networks is own, and {type(objective).__name__} reads no experts to see the real "
            "images: set it to shared or student."
        )
