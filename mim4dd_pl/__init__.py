"""Dataset distillation by trajectory matching with a contrastive mutual-information term."""

from mim4dd_pl.artefact import DistilledDataset

__version__ = "0.1.0"
__all__ = ["DistilledDataset", "__version__"]
