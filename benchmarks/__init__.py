"""Measurements of speed and memory; nothing here is asserted in a timed test."""
