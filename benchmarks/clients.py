"""Other people's clients on our server: lm-eval and guidellm, as they come.

    python -m venv clients && clients/bin/pip install 'lm-eval[api]'==0.4.13 guidellm==0.8.1
    python benchmarks/clients.py --bin clients/bin

Starts `anabranch serve`, runs each client that is found in the folders of `--bin`, and prints what
came of it: its exit status and figures, and how many requests the server answered, by status. Tasks
and texts are made here, so no client needs a hub. its_hub and optillm: `thinking.py --server
anabranch`.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import print_provenance, provenance, write
from servers import AnabranchServer
from workers import say

from anabranch.models.registry import resolve

PATIENCE = 300.0
"""Seconds that a client may take."""


@dataclass(frozen=True)
class Outcome:
    """What came of a client's task.

    Attributes:
        requests: that generated or scored, by HTTP status.
        told: its own figures, or its last words if it failed.
    """

    client: str
    task: str
    requests: dict[int, int]
    ended: str
    told: str


def generation(server: AnabranchServer, folder: Path) -> list[str]:
    """lm-eval: replies to questions, through chat."""
    _task(folder, "sums", "generate_until", "  - metric: exact_match")
    where = f"model={server.model},base_url={server.url}/v1/chat/completions,num_concurrent=4"
    asked = ["--model", "local-chat-completions", "--model_args", where]
    return [*_lm_eval(folder, "sums"), *asked, "--apply_chat_template"]


def likelihood(server: AnabranchServer, folder: Path) -> list[str]:
    """lm-eval: the likelier of two texts, by the log-probabilities of an echoed prompt."""
    more = 'doc_to_choice: ["{{a}}", "{{b}}"]'
    _task(folder, "choices", "multiple_choice", "  - metric: acc", more)
    where = f"model={server.model},base_url={server.url}/v1/completions,num_concurrent=4"
    options = ",tokenizer_backend=remote,tokenized_requests=True"
    asked = ["--model", "local-completions", "--model_args", where + options]
    return [*_lm_eval(folder, "choices"), *asked]


def load(server: AnabranchServer, folder: Path) -> list[str]:
    """guidellm: streamed chat, four at a time."""
    texts = folder / "texts.jsonl"
    asked = ({"prompt": f"What is {k} + {k}?", "output_tokens_count": 16} for k in range(24))
    texts.write_text("\n".join(map(json.dumps, asked)) + "\n")
    return [
        "guidellm", "run", "--disable-progress",
        "--backend", f"kind=openai_http,target={server.url},model={server.model}",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=16",
        "--data", f"kind=json_file,path={texts}",
        "--output", f"kind=json,path={folder / 'guidellm.json'}",
    ]  # fmt: skip


TASKS: list[tuple[str, Callable[[AnabranchServer, Path], list[str]], str]] = [
    ("lm_eval", generation, "lm-eval"),
    ("lm_eval", likelihood, "lm-eval"),
    ("guidellm", load, "guidellm"),
]


def _lm_eval(folder: Path, task: str) -> list[str]:
    where = ["--include_path", str(folder), "--output_path", str(folder / "told")]
    return ["lm_eval", "run", "--tasks", task, *where]


def _task(folder: Path, name: str, kind: str, metric: str, more: str = "") -> None:
    """Write a task of lm-eval, with its data."""
    data = folder / f"{name}.json"
    docs = [{"q": f"{k} + 2 =", "a": f" {k + 2}", "b": f" {9 * k + 30}"} for k in range(1, 9)]
    data.write_text("\n".join(map(json.dumps, docs)) + "\n")
    target = "0" if kind == "multiple_choice" else "{{a}}"
    generated = ""
    if kind == "generate_until":
        generated = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 16, do_sample: false}'
    (folder / f"{name}.yaml").write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: "{target}"
{more}
{generated}
metric_list:
{metric}
"""
    )


def run(
    program: Path, task: str, client: str, command: list[str], records: Path, folder: Path
) -> Outcome:
    """Run a client, and count what the server recorded meanwhile."""
    before = _recorded(records)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    environment = {**os.environ, **offline, "HF_HOME": str(folder / "hub")}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [str(program), *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Outcome(client, task, _recorded(records, before), "too slow", "")
    words = (done.stdout + done.stderr).strip().splitlines()
    ended = f"exit {done.returncode}" if done.returncode else "done"
    told = _figures(folder / "told") if command[0] == "lm_eval" and not done.returncode else ""
    if done.returncode:
        told = " / ".join(words[-3:])[:400]
    return Outcome(client, task, _recorded(records, before), ended, told)


def _figures(folder: Path) -> str:
    """The results that lm-eval wrote last."""
    files = sorted(folder.rglob("results*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        return ""
    results = json.loads(files[-1].read_text())["results"]
    return "; ".join(
        f"{name} {key.partition(',')[0]} {value:.3f}"
        for name, each in results.items()
        for key, value in each.items()
        if isinstance(value, float) and "stderr" not in key
    )


def _recorded(records: Path, before: dict[int, int] | None = None) -> dict[int, int]:
    """Requests by status, since those of `before`."""
    with sqlite3.connect(f"file:{records}?mode=ro", uri=True) as table:
        rows: Any = table.execute("SELECT status, COUNT(*) FROM records GROUP BY status")
        return dict(Counter(dict(rows)) - Counter(before or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--bin", nargs="+", type=Path, required=True, help="folders with the clients' programs"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write or print JSON")
    options = parser.parse_args()
    told, outcomes = provenance(options.threads), []
    print_provenance(told)
    model, threads = Path(resolve(options.model)), told["features"]["threads"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = folder / "records.db"
        with AnabranchServer(model, threads, records=records) as server:
            for name, task, client in TASKS:
                found = [each / name for each in options.bin if (each / name).exists()]
                if not found:
                    say(f"{client} is not in {', '.join(map(str, options.bin))}")
                    continue
                command = task(server, folder)
                outcomes.append(run(found[0], task.__name__, client, command, records, folder))
    print(f"\n{'client':12}{'task':14}{'ended':10}{'requests by status':24}figures")
    for one in outcomes:
        requests = ", ".join(f"{status}: {n}" for status, n in one.requests.items())
        print(f"{one.client:12}{one.task:14}{one.ended:10}{requests:24}{one.told}")
    if options.json:
        write(options.json, {**told, "outcomes": [asdict(one) for one in outcomes]})


if __name__ == "__main__":
    main()
