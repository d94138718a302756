"""The curves of a run: scalars of its TensorBoard event files."""

from pathlib import Path
from typing import NamedTuple

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.runs import RunFolder

MOST_POINTS = 5000  # of a curve; longer ones are thinned by TensorBoard's own reservoir


class Curve(NamedTuple):
    """A value at outer steps, all equally long."""

    steps: list[int]  # counted from one
    values: list[float]
    spread: list[float] | None = None  # a std of each value


def read_curves(folder: Path) -> dict[str, Curve]:
    """Scalars by name, without the pictures and histograms beside them; none where there is no event file.

    Steps count from one: Lightning writes the first as 0.

    Raises:
        StoredFileError: If the files cannot be read.
    """
    from tensorboard.backend.event_processing import event_accumulator as events  # slow to import

    if not any(RunFolder(folder).events()):
        return {}
    kinds = {events.IMAGES, events.HISTOGRAMS, events.TENSORS, events.AUDIO, events.COMPRESSED_HISTOGRAMS}
    sizes = {**dict.fromkeys(kinds, 1), events.SCALARS: MOST_POINTS}  # zero would be all of them
    accumulator = events.EventAccumulator(str(folder), size_guidance=sizes)
    try:
        accumulator.Reload()
    except Exception as error:  # TensorBoard's reader of a damaged file raises whatever it stumbles upon
        raise StoredFileError(f"The event files in {folder} cannot be read ({error}). Move them away.") from error
    found = {name: accumulator.Scalars(name) for name in accumulator.Tags()["scalars"]}
    return {
        name: Curve([event.step + 1 for event in curve], [float(event.value) for event in curve])
        for name, curve in found.items()
    }
