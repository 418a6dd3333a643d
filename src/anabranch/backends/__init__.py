"""The operations a model is made of: `native` (C++) and `reference` (numpy)."""
