"""Tools in a conversation: how they are told to a model, and how its calls are kept valid and read.

The form is the one of Hermes and Qwen, in plain text: definitions between `<tools>` in the system
message, a call as `<tool_call>` around a JSON object, results as `<tool_response>` in a turn of the
user's. One grammar holds calls to the schemas of their tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from anabranch.engine import grammar
from anabranch.engine.constraints import Constraint
from anabranch.errors import InputError, unknown_name
from anabranch.serve.plain import new_id
from anabranch.serve.wire import Body, Said

MOST_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

_OPEN, _CLOSE = "<tool_call>", "\n</tool_call>"
_NAME, _ARGUMENTS, _END = '\n{"name": "', '", "arguments": ', "}" + _CLOSE
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to set spaces in arguments, the one that models were shown: none can be endless."""

_TOLD = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class Function(Body):
    """What may be called. Calls keep to the schema, whatever `strict` says."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function as a tool."""

    type: Literal["function"]
    function: Function


class _Chosen(Body):
    name: ToolName


class NamedTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: _Chosen


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class _Called(Body):
    name: ToolName
    arguments: str


class ToolCall(Said):
    """A call that was made, as it stands in a message."""

    id: str
    type: Literal["function"] = "function"
    function: _Called

    @property
    def text(self) -> str:
        """The call as the model wrote it."""
        try:
            known = isinstance(json.loads(self.function.arguments), dict)
        except (ValueError, RecursionError):
            known = False
        arguments = self.function.arguments if known else json.dumps(self.function.arguments)
        return f"{_OPEN}{_NAME}{self.function.name}{_ARGUMENTS}{arguments}{_END}"


def with_calls(content: str, calls: Sequence[ToolCall]) -> str:
    """The text of a turn with its calls."""
    return "\n".join([*([content] if content else []), *(call.text for call in calls)])


def response(content: str) -> str:
    """A tool's result, as a part of a turn of the user's."""
    return f"<tool_response>\n{content}\n</tool_response>"


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request.

    Attributes:
        functions: those that may be called; only one if it was named.
        told: those that the model is told of.
        required: a call must come.
        parallel: several may come.
    """

    functions: tuple[Function, ...]
    told: tuple[Function, ...]
    required: bool
    parallel: bool

    @property
    def text(self) -> str:
        """What the system message says of the tools."""
        tools = (
            {
                "type": "function",
                "function": function.model_dump(exclude_none=True, exclude={"strict"}),
            }
            for function in self.told
        )
        return _TOLD.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))

    @property
    def form(self) -> str:
        """What is asked for after a thought."""
        if self.required:
            return "Now make the tool calls that this needs, and say nothing else."
        return "Now make the tool calls that this needs; if none is needed, state the final answer."

    def rule(self, schema: dict[str, Any] | None) -> Constraint:
        """A grammar for texts and calls.

        Args:
            schema: of texts that are no calls; None: they are free.

        Raises:
            InputError: parameters that describe no object.
        """
        said = "TEXT" if schema is None else f"%json {json.dumps(schema)}"
        another = f'("\\n{_OPEN}" body)*' if self.parallel else ""
        opened = f'opened[lazy]: TEXT "{_OPEN}"'
        if self.required or schema is not None:  # nothing comes before a call
            opened = f'opened: "{_OPEN}"'
        lines = [
            "%llguidance {}",
            "start: opened calls" + ("" if self.required else " | said"),
            *([] if self.required else [f"said: {said}"]),
            opened,
            f"calls: body {another}",
            "body: " + " | ".join(f"body_{i}" for i in range(len(self.functions))),
        ]
        for i, function in enumerate(self.functions):
            begin = json.dumps(f"{_NAME}{function.name}{_ARGUMENTS}")
            lines.append(f"body_{i}: {begin} %json {_arguments(function)} {json.dumps(_END)}")
        if any("TEXT" in line for line in lines[2:4]):
            lines.append(r"TEXT: /(.|\n)*/")
        return grammar.lark("\n".join(lines))


def toolbox_of(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> Toolbox | None:
    """The tools that a request lets a model call; None where there are none.

    Raises:
        InputError: a name twice, or a choice of what is not there.
    """
    functions = {tool.function.name: tool.function for tool in tools or ()}
    if len(functions) < len(tools or ()):
        raise InputError("two tools have the same name")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise InputError("tool_choice asks for a call, but there are no tools")
        return None
    if choice == "none":
        return None
    allowed = tuple(functions.values())
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            raise unknown_name("tool in tool_choice", name, functions)
        allowed = (functions[name],)
    required = choice not in (None, "auto")
    several = parallel is not False and not isinstance(choice, NamedTool)
    return Toolbox(allowed, tuple(functions.values()), required, several)


def _arguments(function: Function) -> str:
    schema = {"type": "object", **(function.parameters or {}), "x-guidance": _SPACING}
    if schema["type"] != "object":
        raise InputError(
            f"the parameters of {function.name} are no object",
            got=schema["type"],
            allowed='{"type": "object", "properties": ...}',
        )
    return json.dumps(schema)


class Calls:
    """Reads calls out of a text that keeps to `Toolbox.rule`, as it comes.

    Attributes:
        complete: the text so far ends with a whole call.
    """

    def __init__(self) -> None:
        self._rest, self._count = "", -1
        self._state: Literal["text", "name", "arguments", "after"] = "text"

    @property
    def complete(self) -> bool:
        """See the class."""
        return self._state == "after"

    def read(self, text: str, *, last: bool = False) -> list[dict[str, Any]]:
        """Deltas of a message for more of the text.

        Args:
            last: nothing follows.
        """
        self._rest += text
        found: list[dict[str, Any]] = []
        while True:
            state, rest = self._state, self._rest
            if state == "text":
                at = rest.find(_OPEN)
                held = _held(rest, _OPEN)
                # Space before a call belongs to the form, not to what is said.
                end = (
                    len(rest) if last and at < 0 else len(rest[: at if at >= 0 else held].rstrip())
                )
                if end:
                    found.append({"content": rest[:end]})
                self._rest = rest[end:]
                if at < 0:
                    return found
                self._rest, self._state = rest[at + len(_OPEN) :], "name"
            elif state == "name":
                head, mark, self._rest = rest.partition(_ARGUMENTS)
                if not mark:
                    self._rest = rest
                    return found
                self._count += 1
                called = {"name": head.removeprefix(_NAME), "arguments": ""}
                about = {"id": new_id("call"), "type": "function", "function": called}
                found.append({"tool_calls": [{"index": self._count, **about}]})
                self._state = "arguments"
            elif state == "arguments":
                at = rest.find(_END)
                end = at if at >= 0 else len(rest) if last else _held(rest, _END)
                if end:
                    part = {"index": self._count, "function": {"arguments": rest[:end]}}
                    found.append({"tool_calls": [part]})
                self._rest = rest[end:]
                if at < 0:
                    return found
                self._rest, self._state = rest[at + len(_END) :], "after"
            else:
                if _OPEN not in rest:
                    return found
                self._rest, self._state = rest.partition(_OPEN)[2], "name"


def _held(text: str, mark: str) -> int:
    """Where the end of a text begins that may become a mark."""
    longest = min(len(text), len(mark) - 1)
    for size in range(longest, 0, -1):
        if text.endswith(mark[:size]):
            return len(text) - size
    return len(text)


def merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta to the message that all of them make up."""
    for field, told in delta.items():
        if field == "role":
            continue
        if field != "tool_calls":
            message[field] = (message.get(field) or "") + told
            continue
        calls = message.setdefault("tool_calls", [])
        for part in told:
            if part["index"] == len(calls):
                calls.append({k: v for k, v in part.items() if k != "index"})
                calls[-1]["function"] = dict(part["function"])
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
