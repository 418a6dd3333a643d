"""Judges: what a thought is worth."""
