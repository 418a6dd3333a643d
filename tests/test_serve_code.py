"""Programs that a model wrote: they run for clients only where the server was told so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import anabranch
from anabranch.program.types import Problem
from anabranch.reason.registry import strategies
from anabranch.verify.registry import Judge, judge, judges
from tests.serving import Running, serving
from tests.test_serve_own import ASKED, CHAT, TWO, User, asking

PACKAGE = Path(anabranch.__file__).parent
RUNNERS = ("collaborative", "hypothesis_search", "pal", "solver_learner", "tactics")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(TWO, folder=tmp_path_factory.mktemp("folder")) as running:
        yield running


def ask(server: Running, strategy: str | None = None, **options: Any) -> Any:
    """A reply."""
    body: dict[str, Any] = {"model": "scripted", "messages": ASKED, **options}
    more = {} if strategy is None else {"anabranch": {"strategy": strategy, "seed": 1}}
    return server.client.chat.completions.create(**body, extra_body=more)


def refused(server: Running, *args: Any, **options: Any) -> str:
    """What is told of a request that is refused for running programs."""
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(server, *args, **options)
    assert caught.value.code == "code_tools_off"
    return str(caught.value)


def imported(module: str, seen: set[str]) -> set[str]:
    """What a module of ours imports, directly and through others."""
    path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    if module not in seen and path.exists():
        seen.add(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
                    imported(name, seen)
    return seen


def test_what_can_reach_the_interpreter_says_so() -> None:
    """`runs_code` is told by hand, so it is compared with what files import."""
    for entry in (*strategies(), *judges()):
        make = getattr(entry.make, "__wrapped__", entry.make)
        reaches = "anabranch.tools.python" in imported(make.__module__, set())
        assert entry.runs_code == reaches, entry.name
        assert entry.describe()["runs_code"] == reaches
    assert {entry.name for entry in strategies() if entry.runs_code} == set(RUNNERS)


@pytest.mark.parametrize("name", RUNNERS)
def test_they_are_refused_alone_and_inside_others(server: Running, name: str) -> None:
    inside = (f"organize(then={name})", f"organize(then=evidence(then={name}))")
    for strategy in (name, f"{name}()", *inside):
        message = refused(server, strategy)
        assert name in message
        assert "code_tools = true" in message
    assert name in refused(server, model=f"scripted:{name}")
    assert ask(server, "organize(then=evidence(then=vote))").choices[0].message.content


def test_no_route_lets_them_in(server: Running) -> None:
    client = server.client
    with pytest.raises(openai.PermissionDeniedError):
        client.responses.create(model="scripted:pal-4", input="x")
    with pytest.raises(openai.PermissionDeniedError):
        client.models.retrieve("scripted:pal-4")
    user = User(server, "none")
    batch = user.batch(asking("x", model="scripted:pal-4"))
    batch = user.until(batch, lambda batch: batch.status == "completed")
    assert '"status_code": 403' in client.files.content(batch.error_file_id).text
    assert "scripted:pal-4" not in [model.id for model in client.models.list()]
    shown = [each["name"] for each in user.get("/v1/strategies")[1]["data"]]
    assert "vote" in shown
    assert not set(shown) & set(RUNNERS)


def test_judges_that_run_programs_are_refused_too(server: Running, own_methods: None) -> None:
    @judge("runner", paper="none", summary="runs programs", runs_code=True)
    def runner() -> Judge:
        async def rate(problem: Problem, thoughts: Any) -> list[float]:
            return [0.5 for _ in thoughts]

        return Judge(rate)

    user = User(server, "none")
    assert "runner" not in [each["name"] for each in user.get("/v1/judges")[1]["data"]]
    for text in ("weighted(judge=runner)", "weighted(judge=likelihood * runner)"):
        assert "runner" in refused(server, text)
    status, told = user.ask(
        CHAT,
        {
            "model": "scripted:weighted-2",
            **asking("x"),
            "anabranch": {"judge": "product(b=runner)"},
        },
    )
    assert (status, told["error"]["code"]) == (403, "code_tools_off")
    with serving(TWO, code_tools=True) as open_server:
        reply = ask(open_server, "weighted(n=2, judge=runner)")
        assert reply.choices[0].message.content


def test_a_server_that_was_told_so_runs_them() -> None:
    pytest.importorskip("pydantic_monty")
    program = "```python\nprint(6 * 7)\n```"
    with serving({program: 1.0}, code_tools=True) as server:
        assert ask(server, "pal(n=2)").choices[0].message.content == "42"
        assert ask(server, model="scripted:pal-4").choices[0].message.content == "42"
        assert "scripted:pal-4" in [model.id for model in server.client.models.list()]
        user = User(server, "none")
        shown = {each["name"]: each["runs_code"] for each in user.get("/v1/strategies")[1]["data"]}
        assert shown["pal"]
        assert not shown["vote"]
