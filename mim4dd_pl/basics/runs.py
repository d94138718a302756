"""The folder of a run, and where each of its files is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VERSION = "version_"


@dataclass(frozen=True)
class RunFolder:
    """What a fit leaves behind; a ``test`` that keeps its results fills the same names.

    Args:
        path: The folder, ``<save_dir>/<name>/version_N`` with the recipes' loggers.
    """

    path: Path

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunFolder":
        """The run that wrote a checkpoint."""
        return cls(path.resolve().parent.parent)

    @classmethod
    def versions(cls, parent: Path) -> list["RunFolder"]:
        """All runs in a folder that Lightning has numbered, the newest first."""
        runs = [cls(path) for path in parent.glob(f"{_VERSION}*")]
        return sorted((run for run in runs if run.version is not None), key=lambda run: -(run.version or 0))

    @property
    def version(self) -> int | None:
        """N, if it is so named."""
        number = self.path.name.removeprefix(_VERSION)
        return int(number) if number.isdigit() and number != self.path.name else None

    @property
    def recipe(self) -> Path:
        """Every setting of the run."""
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        """The closing table, and what to know about the run; written when it is finished."""
        return self.path / "results.json"

    @property
    def table(self) -> Path:
        """The rows alone."""
        return self.path / "results.csv"

    @property
    def diagnostics(self) -> Path:
        """The symptoms that fired."""
        return self.path / "diagnostics.json"

    @property
    def comparison(self) -> Path:
        """Learned images above real ones."""
        return self.path / "comparison.png"

    @property
    def analysis(self) -> Path:
        """A folder with figures and :attr:`findings`."""
        return self.path / "analysis"

    @property
    def findings(self) -> Path:
        """The analysis in numbers, with the captions of its figures."""
        return self.analysis / "analysis.json"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    def checkpoint(self, which: str) -> Path:
        """``last`` or ``best``."""
        return self.path / "checkpoints" / f"{which}.ckpt"

    def distilled(self, which: str) -> Path:
        """The artefact of the ``last`` or ``best`` step, a folder."""
        return self.path / "distilled" / which

    def events(self) -> Iterator[Path]:
        """TensorBoard's files."""
        return self.path.glob("events.out.tfevents*")
