"""The folder of a run, and where each of its files is."""

from collections.abc import Iterator
from pathlib import Path

_VERSION = "version_"


class RunFolder:
    """What a fit leaves behind; a ``test`` that keeps its results fills the same names.

    Args:
        path: The folder, ``<save_dir>/<name>/version_N`` with the recipes' loggers.

    Attributes:
        version: N, None for a folder of another name.
        recipe: Every setting of the run.
        results: The closing table and what to know about the run; a finished one has it.
        table: The rows alone.
        diagnostics: The symptoms that fired.
        comparison: Learned images above real ones.
        analysis: A folder with figures, and their captions among the numbers in ``findings``.
        report: The page about the run.
    """

    def __init__(self, path: Path) -> None:
        number = path.name.removeprefix(_VERSION)
        self.path = path
        self.version = int(number) if path.name.startswith(_VERSION) and number.isdigit() else None
        self.recipe = path / "config.yaml"
        self.results, self.table = path / "results.json", path / "results.csv"
        self.diagnostics = path / "diagnostics.json"
        self.comparison = path / "comparison.png"
        self.analysis = path / "analysis"
        self.findings = self.analysis / "analysis.json"
        self.report = path / "report.html"

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunFolder":
        """The run that wrote a checkpoint."""
        return cls(path.resolve().parent.parent)

    @classmethod
    def versions(cls, parent: Path) -> list["RunFolder"]:
        """All runs in a folder that Lightning has numbered, the newest first."""
        numbered = {run.version: run for run in map(cls, parent.glob(f"{_VERSION}*")) if run.version is not None}
        return [numbered[version] for version in sorted(numbered, reverse=True)]

    def checkpoint(self, which: str) -> Path:
        """``last`` or ``best``."""
        return self.path / "checkpoints" / f"{which}.ckpt"

    def distilled(self, which: str) -> Path:
        """The artefact of the ``last`` or ``best`` step, a folder."""
        return self.path / "distilled" / which

    def events(self) -> Iterator[Path]:
        """TensorBoard's files."""
        return self.path.glob("events.out.tfevents*")
