"""The one shape that every part speaks of."""

ImageShape = tuple[int, int, int]
"""(channels, height, width) of one image."""
