"""Classifiers that can show their layers."""
