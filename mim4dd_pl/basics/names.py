"""Names under which a run keeps its numbers: curves of its logs, and rows of its closing table."""

# --- curves over the outer steps

TRAIN = "train/"
MATCHING_LOSS = "train/matching_loss"
STUDENT_LR = "train/student_lr"
IMAGE_GRADIENT = "train/image_gradient"
HOST_GRADIENT = "train/image_gradient_host"
TERM_GRADIENT = "train/image_gradient_information"
TERM_FACTOR = "train/information_factor"
TERM_LOSS = "train/information_loss"
COSINE = "train/gradient_cosine"
LABEL_GRADIENT = "train/label_gradient"
SKIPPED_STEPS = "train/skipped_steps"
CEILING = "train/bound_nats_ceiling"
EXPERT_ACCURACY = "experts/accuracy"


def bound_of(layer: str) -> str:
    """The information bound of a layer, which is named ``layer1``, ``layer2``, ... or ``logits``."""
    return f"train/bound_nats_{layer}"


LAYER_BOUND, LOGITS_BOUND = bound_of("layer"), bound_of("logits")
"""What the names of all of these begin with."""


def accuracy_of(stage: str) -> str:
    """Mean accuracy of the students at ``validation`` or ``test``."""
    return f"{stage}/accuracy"


def accuracy_std_of(stage: str) -> str:
    """Its standard deviation over the students."""
    return f"{stage}/accuracy_std"


VALIDATION_ACCURACY, VALIDATION_STD = accuracy_of("validation"), accuracy_std_of("validation")


def diagnostic(symptom: str) -> str:
    """The number of a symptom."""
    return f"diagnostics/{symptom}"


# --- rows of the closing table

DISTILLED = "distilled"
LAST, BEST = f"{DISTILLED} (last)", f"{DISTILLED} (best"
RANDOM, RANDOM_SOFT = "random real images", "random real, an expert's labels"
CANVASES = "canvases of random real images"
WHOLE = "whole training set"


def best_row(step: int) -> str:
    """The set of the outer step with the best validation accuracy."""
    return f"{BEST}, step {step:,})"


def hard_labels(row: str) -> str:
    """The same set with classes in place of its soft labels."""
    return f"{row}, hard labels"


def row_curve(network: str, row: str) -> str:
    """The test accuracy of a row, beside the settings of the run."""
    return f"test/{network.partition('(')[0]}/{row}"
