"""Strategies: small asynchronous programs over branches."""
