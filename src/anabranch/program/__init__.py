"""The asynchronous runtime: branches, budgets, usage, traces."""
