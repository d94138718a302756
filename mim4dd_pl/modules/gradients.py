"""What the segments of an outer step contribute to it: gradients of the host and of the information term."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mim4dd_pl.basics import names
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, ImageSet
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.information.term import Information, InformationTerm
from mim4dd_pl.objectives.base import Match
from mim4dd_pl.objectives.sampling import real_batch
from mim4dd_pl.objectives.synthetic import SyntheticImages, TrainingImages


class Gradients(NamedTuple):
    """Losses and gradients of some segments, added; the two terms apart and unweighted."""

    host_loss: Tensor  # ()
    host_images: Tensor  # (S, c, h, w)
    host_lr: Tensor  # ()
    host_labels: Tensor  # (S, C) of the logits of soft labels; (0,) without
    information_loss: Tensor  # ()
    bounds: Tensor  # (K,) nats, of K layers
    information_images: Tensor  # (S, c, h, w)
    information_lr: Tensor  # ()
    information_parameters: Tensor  # all parameters of heads and critic, one vector

    def joined(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Those on images and student learning rate, the term's multiplied with ``factor``."""
        images = self.host_images + factor * self.information_images
        return images, self.host_lr + factor * self.information_lr


def gathered(gradients: Gradients, gather: Callable[[Tensor], Tensor]) -> Gradients:
    """Rows of gradients with those of other processes between them; one message carries all fields.

    Args:
        gradients: Each field with a leading dimension of n rows.
        gather: Turns (n, L) into (N, L).
    """
    widths = [part[0].numel() for part in gradients]
    flat = [part.reshape(-1, width) if width else part for part, width in zip(gradients, widths, strict=True)]
    parts = gather(torch.cat(flat, 1)).split(widths, 1)
    # Contiguous, as one process has them: the order of a sum may depend on it.
    shaped = (part.reshape(len(part), *own.shape[1:]) for part, own in zip(parts, gradients, strict=True))
    return Gradients(*(part.contiguous() for part in shaped))


def segment_gradients(
    match: Match,
    synthetic: SyntheticImages,
    decoded: TrainingImages,
    derivatives: Derivatives,
    information: InformationTerm | None,
    real: Sequence[Batch],
) -> Gradients:
    """Differentiate both terms for the segments of ``match``; ``real`` holds a batch for the term in each of them.

    ``decoded`` is what the host was shown of ``synthetic``. Soft labels learn from the host alone, as the term
    contrasts classes.
    """
    loss = match.loss.sum()
    keep = information is not None and information.through_student
    logits = [] if synthetic.label_logits is None else [synthetic.label_logits]
    # Not every host depends on the student's learning rate or on labels.
    host_images, host_lr, *host_labels = torch.autograd.grad(
        loss, (decoded.images, synthetic.student_lr, *logits), retain_graph=keep, materialize_grads=True
    )
    term = information_gradients(match, decoded, derivatives, information, real)
    labels = host_labels[0] if host_labels else loss.new_zeros(0)
    gradients = Gradients(loss.detach(), host_images, host_lr, labels, *term)
    if decoded.images is synthetic.images:
        return gradients
    stored = (
        torch.autograd.grad(decoded.images, synthetic.images, each, retain_graph=True)[0]
        for each in (gradients.host_images, gradients.information_images)
    )
    return gradients._replace(host_images=next(stored), information_images=next(stored))


def information_gradients(
    match: Match,
    synthetic: TrainingImages,
    derivatives: Derivatives,
    information: InformationTerm | None,
    real: Sequence[Batch],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The last five fields of :class:`Gradients`, on the decoded images; without the term, zeros or empty."""
    images, student_lr = synthetic.images, synthetic.student_lr
    if information is None:
        nothing = images.new_zeros(0)
        return images.new_zeros(()), nothing, torch.zeros_like(images), torch.zeros_like(student_lr), nothing
    terms = []
    experts = [None] * len(real) if match.expert is None else match.expert
    for student, expert, batch in zip(match.student, experts, real, strict=True):
        sees_synthetic, sees_real = information.features_of(student, expert)
        sides = (sees_synthetic, images), (sees_real, batch.images)
        features = [
            # Compiled derivatives reach the images alone, and not the student's weights.
            (derivatives.network if theta.requires_grad else derivatives).layers(theta, seen, information.reads_logits)
            for theta, seen in sides
        ]
        term: Information = information(*features, synthetic.labels, batch.labels)
        terms.append(term)
    loss = torch.stack([term.loss for term in terms]).sum()
    bounds = torch.stack([term.bounds for term in terms]).sum(0)
    own = learned(information)
    gradients = torch.autograd.grad(loss, (images, student_lr, *own), allow_unused=True, materialize_grads=True)
    flat = torch.cat([images.new_zeros(0), *(gradient.reshape(-1) for gradient in gradients[2:])])
    return loss.detach(), bounds, gradients[0], gradients[1], flat


def information_batch(information: InformationTerm, real: ImageSet, segments: int, stream: Stream) -> Batch:
    """Real images for the term beside one of so many segments, random or balanced over the classes as it wants them.

    The real images of a step are dealt to its segments: their forward pass is what the term costs.
    """
    count = information.real_batch_size // segments
    if information.real_sampling == "balanced":
        return real_batch(real, max(1, count // real.num_classes), stream)
    chosen = torch.randint(len(real), (count,), generator=stream.generator())
    return real.batch(chosen.to(real.labels.device))


def learned(information: InformationTerm | None) -> list[nn.Parameter]:
    """What heads and critic learn."""
    return [] if information is None else [part for part in information.parameters() if part.requires_grad]


def log_values(
    mean: Gradients, synthetic: SyntheticImages, information: InformationTerm | None, factor: Tensor
) -> dict[str, Tensor]:
    """What a step logs, by name; ``factor`` is what the term's gradient was multiplied with."""
    values = {
        names.MATCHING_LOSS: mean.host_loss,
        names.STUDENT_LR: synthetic.student_lr.detach(),
        names.IMAGE_GRADIENT: mean.joined(factor)[0].norm(),
        names.HOST_GRADIENT: mean.host_images.norm(),
    }
    if synthetic.label_logits is not None:
        values[names.LABEL_GRADIENT] = mean.host_labels.norm()
    if information is not None:
        values[names.TERM_LOSS] = mean.information_loss
        values[names.TERM_GRADIENT] = mean.information_images.norm()
        values[names.COSINE] = cosine_similarity(
            mean.host_images.flatten(), mean.information_images.flatten(), dim=0, eps=torch.finfo(torch.float32).tiny
        )
        values[names.TERM_FACTOR] = factor
        if information.critic.ceiling is not None:
            values[names.CEILING] = torch.tensor(information.critic.ceiling)
            for name, bound in zip(information.layers, mean.bounds, strict=True):
                values[names.bound_of(name)] = bound
    return values
