"""Dataset distillation by trajectory matching with a contrastive mutual-information term."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim4dd_pl.stored.dataset import DistilledDataset

__version__ = "0.1.0"
__all__ = ["DistilledDataset", "__version__"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: torch takes seconds, in which the program is to answer Ctrl-C.
    if name == "DistilledDataset":
        from mim4dd_pl.stored.dataset import DistilledDataset

        return DistilledDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
