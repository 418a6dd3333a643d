"""Types of the compiled module; `anabranch.backends.base` says what the operations mean.

Operations take the protocols' types, as `Backend` does, and refuse another backend's objects with
a TypeError.
"""

from typing import ClassVar, overload

from anabranch.backends import base
from anabranch.backends.base import F32, I8, I32, U8, U64

class Activation:
    none: ClassVar[Activation]
    silu: ClassVar[Activation]
    gelu_tanh: ClassVar[Activation]

class Storage:
    f32: ClassVar[Storage]
    bf16: ClassVar[Storage]

class Matrix:
    @overload
    def __init__(
        self, q: U8 | I8, scale: F32, offset: F32 | None, bits: int, group: int
    ) -> None: ...
    @overload
    def __init__(self, values: F32) -> None: ...
    @overload
    def __init__(self, format: str, data: U8, outputs: int, inputs: int, mapped: bool) -> None: ...

class Linear:
    inputs: int
    outputs: int
    nbytes: int

class Cache:
    pages: int
    nbytes: int

    def __init__(
        self, layers: int, kv_heads: int, dim: int, pages: int, storage: Storage
    ) -> None: ...

class Plan:
    rows: int

    def __init__(
        self,
        tokens: I32,
        positions: I32,
        slots: I32,
        row_starts: I32,
        tables: I32,
        table_starts: I32,
        cache: base.Cache,
    ) -> None: ...
    @property
    def works(self) -> list[tuple[int, int, int, int]]:
        """Who reads what together: (first row, end, first grid index, pages), in order."""

Norm = tuple[F32, float]
"""Weight and eps."""

class Stack:
    def __init__(self, activation: Activation, scale: float) -> None: ...
    def add(
        self,
        qkv: base.Linear,
        o: base.Linear,
        gate_up: base.Linear,
        down: base.Linear,
        attn_norm: Norm,
        q_norm: Norm | None,
        k_norm: Norm | None,
        post_attn_norm: Norm | None,
        ffn_norm: Norm,
        post_ffn_norm: Norm | None,
        rope: int,
        window: int,
    ) -> None: ...

class Backend:
    def __init__(self, threads: int, isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def seconds(self) -> dict[str, float]:
        """Seconds inside each operation since the backend was made."""

    @staticmethod
    def isas() -> list[str]:
        """Instruction sets that this build and this processor have, best first."""

    def pack(self, parts: list[Matrix], bias: F32 | None) -> Linear: ...
    def embed(self, table: base.Linear, tokens: I32, scale: float, out: F32) -> None: ...
    def linear(
        self,
        x: F32,
        weight: base.Linear,
        out: F32,
        norm_weight: F32 | None,
        norm_eps: float,
        activation: Activation,
        post_weight: F32 | None,
        post_eps: float,
        add: bool,
    ) -> None: ...
    def rope_store(
        self,
        qkv: F32,
        cache: base.Cache,
        layer: int,
        plan: base.Plan,
        cos: F32,
        sin: F32,
        q: F32,
        q_weight: F32 | None,
        q_eps: float,
        k_weight: F32 | None,
        k_eps: float,
    ) -> None: ...
    def attend(
        self,
        q: F32,
        cache: base.Cache,
        layer: int,
        plan: base.Plan,
        scale: float,
        out: F32,
        window: int,
    ) -> None: ...
    def run(
        self,
        stack: base.Stack,
        h: F32,
        cache: base.Cache,
        plan: base.Plan,
        ropes: list[tuple[F32, F32]],
    ) -> None: ...
    def copy_page(self, cache: base.Cache, source: int, target: int) -> None: ...
    def draw(
        self,
        logits: F32,
        row: I32,
        given: I32,
        key: U64,
        position: I32,
        temperature: F32,
        top_k: I32,
        top_p: F32,
        min_p: F32,
        edit_starts: I32,
        edit_token: I32,
        edit_scale: F32,
        edit_shift: F32,
        token: I32,
        logp: F32,
        logq: F32,
        entropy: F32,
    ) -> None: ...

def philox(key: int, a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]: ...
