"""Strategies over models behind OpenAI-compatible endpoints."""
