"""Measuring ways to think: what they are worth, how sure that is, and how it is shown."""
