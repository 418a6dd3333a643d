"""What clients send, as far as several routes share it. Unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anabranch.errors import InputError

MOST_CHOICES = 128
MOST_STOPS = 16

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Priority = Annotated[int, Field(ge=-10, le=0)]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]
Prompts = str | list[str] | list[int] | list[list[int]]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


class Body(BaseModel):
    """A JSON object with known fields only, and no silent conversions of type."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Said(Body):
    """A part of a conversation, which clients send back as they got it: fields that are null say
    nothing, whatever their names."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class Spend(Body):
    """What a strategy may spend on all its branches together."""

    tokens: Tokens | None = None
    seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None


class Turn(Body):
    """When it is a request's turn.

    Attributes:
        priority: below 0 it comes after what has a higher one, its key's requests and others'.
        deadline: seconds from its arrival until it is over: it comes before its key's requests
            that have more time, and ends with what it has come to.
    """

    priority: Priority = 0
    deadline: Annotated[float, Field(gt=0, le=86_400)] | None = None


class Extension(Turn):
    """How to think: our one field beside OpenAI's.

    Attributes:
        strategy: such as `vote(n=16)`; wins over one in the model's name.
        budget: for all branches together.
        judge: what strategies that take one rate thoughts by.
        seed: wins over the request's.
        trace: stream what happens in the tree, as chunks without choices.
    """

    strategy: Annotated[str, Field(max_length=1000)] | None = None
    budget: Spend | None = None
    judge: Annotated[str, Field(max_length=1000)] | None = None
    seed: Seed | None = None
    trace: bool = False


class StreamOptions(Body):
    """`include_usage` adds a last chunk with the usage; the rest is accepted and ignored."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class Structured(Body):
    """One rule for the text, in vLLM's words."""

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Drawn(Body):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0, le=10)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: dict[Annotated[str, Field(max_length=12)], float] | None = None
    ignore_eos: bool = False


class Sampled(Drawn):
    """Parameters that chat and plain completions have in common."""

    model: Name
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    include_stop_str_in_output: bool = False
    seed: Seed | None = None
    max_tokens: Tokens | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    structured_outputs: Structured | None = None
    anabranch: Extension | None = None

    # Accepted, since clients send them, and without effect.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether usage is told: streams that did not ask for it have a choice in every chunk."""
        return not self.stream or bool(self.stream_options and self.stream_options.include_usage)


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

EFFORTS: dict[str, tuple[str, int] | None] = {
    "none": None,
    "minimal": ("single", 1024),
    "low": ("adaptive(n=4)", 4096),
    "medium": ("adaptive(n=8)", 8192),
    "high": ("adaptive(n=16)", 16384),
    "xhigh": ("adaptive(n=64)", 65536),
}
"""What `reasoning_effort` stands for: a strategy and the tokens that it may spend."""


Shape = dict[int | str, dict[str, Any]]


def shape(kind: str | None, /, **fields: str) -> Shape:
    """What the OpenAPI document tells of a route's good response.

    Args:
        kind: its field `object`.
        fields: others that it always has, with their types as JSON Schema names them, as
            "string null".
    """
    known: dict[str, Any] = {name: {"type": told.split()} for name, told in fields.items()}
    if kind is not None:
        known["object"] = {"const": kind}
    schema = {"type": "object", "properties": known, "required": list(known)}
    return {200: {"content": {"application/json": {"schema": schema}}}}


def or_stream(told: Shape) -> Shape:
    """The same, where a stream of events may come instead."""
    content = {**told[200]["content"], "text/event-stream": {}}
    return {200: {"content": content}}


def page(
    found: list[dict[str, Any]], limit: int, newest: bool, after: str | None
) -> dict[str, Any]:
    """A part of a list. Raises InputError for an id that is not in it."""
    if newest:
        found = found[::-1]
    if after is not None:
        places = [i for i, each in enumerate(found, 1) if each["id"] == after]
        if not places:
            raise InputError("nothing in this list has this id", got=after)
        found = found[places[0] :]
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }


PAGE = shape("list", data="array", first_id="string null", last_id="string null",
             has_more="boolean")  # fmt: skip
DELETED = shape(None, id="string", object="string", deleted="boolean")
