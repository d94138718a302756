"""Images: where they come from, how they are kept, normalised and augmented."""
