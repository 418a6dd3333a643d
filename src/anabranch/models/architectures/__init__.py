"""Families of models, each one file: what its headers and weight names mean to the one decoder."""

from __future__ import annotations

from anabranch.models.architectures.base import Architecture
from anabranch.models.architectures.gemma3 import GEMMA3
from anabranch.models.architectures.llama import LLAMA
from anabranch.models.architectures.qwen import QWEN2, QWEN3

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA, QWEN2, QWEN3, GEMMA3)
"""Every family there is. A new one is a file beside these, its name here, and its test."""
