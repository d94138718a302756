"""The LightningModules and the LightningDataModule."""
