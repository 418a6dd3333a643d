"""Solvers: what a model may hand its calculating and deducing to."""
