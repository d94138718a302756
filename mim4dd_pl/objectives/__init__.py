"""The synthetic images, and the hosts that say what they should match."""
