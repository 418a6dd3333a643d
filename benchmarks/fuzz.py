"""Fuzz every route with schemathesis, by the OpenAPI document that the server itself gives.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install 'schemathesis>=4'
    python benchmarks/fuzz.py --st /tmp/fuzz/bin/st --seconds 300

A scripted model answers, so that it is the server which is tried. A check fails on a 5xx (but for
what says that it is no fault: 501 and 507), on statuses, media types and bodies that are not
documented, on requests accepted against the document, on methods that should not be there, and on
what can be used after it was deleted. Exits with the program's status: 0 when nothing failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
PHASES = "coverage,fuzzing,stateful"
LEFT_OUT = "positive_data_acceptance,ensure_resource_availability"
"""Fields that exclude one another are not told by the document: such requests get 400, rightly.
And a file's `filename` is taken for the `name` in paths, which is its id."""

HOOKS = '''
import random

import schemathesis

RANDOM = random.Random(1)
MADE = {}  # ids by kind
SECRETS = {}  # of sessions


def kind(path):
    parts = [part for part in path.split("/") if part != "v1"]
    return parts[1] if len(parts) > 1 else ""


@schemathesis.hook
def map_body(context, body):
    """Names of models that are there: any other is refused before the rest is looked at. Deadlines
    that can be met: 504 is right for others."""
    named = body.get("model") if isinstance(body, dict) else None
    if isinstance(named, str) and 0 < len(named) <= 500:
        body = {**body, "model": RANDOM.choice(["scripted"] * 3 + ["scripted:vote-4"])}
        extension = body.get("anabranch")
        if isinstance(extension, dict) and isinstance(extension.get("deadline"), float):
            body["anabranch"] = {**extension, "deadline": extension["deadline"] + 60}
    return body


def fewer(body):
    """Fewer fields: of all that are allowed at once, some always exclude each other."""
    prompts = [name for name in ("messages", "prompt", "text", "tokens") if body.get(name)]
    kept = {"model", "input", "options", "input_file_id", "endpoint", "completion_window"}
    kept |= {name for name in body if RANDOM.random() < 0.2} - {"session"}
    kept = kept.difference(prompts[1:]) | set(prompts[:1])
    return {name: value for name, value in body.items() if name in kept}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Ids of what was made, and the secrets that go with them."""
    told = isinstance(case.body, dict) and "file" not in case.body
    if told and case.meta and case.meta.generation.mode.is_positive:
        case.body = fewer(case.body)
    if case.method == "DELETE":
        return  # what a check has made and looks for must not be taken from it
    made = MADE.get(kind(case.path))
    for field in ("name", "session"):
        known = (case.path_parameters or {}).get(field)
        if known is not None and known not in (made or ()) and made and RANDOM.random() < 0.8:
            case.path_parameters[field] = RANDOM.choice(made)
    for name in (case.path_parameters or {}).values():
        if secret := SECRETS.get(str(name).partition(".")[0]):
            case.headers["X-Session-Secret"] = secret
    if isinstance(case.body, dict) and RANDOM.random() < 0.5:
        for field, of in (("previous_response_id", "responses"), ("input_file_id", "files")):
            if field in case.body and MADE.get(of):
                case.body[field] = RANDOM.choice(MADE[of])


@schemathesis.hook
def after_call(context, case, response):
    """Remember what was made, and is there still."""
    if case.method == "DELETE" and response.status_code == 200:
        for name in case.path_parameters.values():
            for kept in MADE.values():
                kept[:] = [each for each in kept if str(each).partition(".")[0] != name != each]
        return
    if ["application/json"] != response.headers.get("content-type") or response.status_code != 200:
        return
    told = response.json()
    if not isinstance(told, dict):
        return
    for each in (told, *(told.get("data") or ())):
        if isinstance(each, dict) and "id" in each:
            MADE.setdefault(kind(case.path), []).append(each["id"])
            if "session" in each:
                MADE.setdefault("sessions", []).append(each["session"])
    if "secret" in told:
        SECRETS[told["session"]] = told["secret"]
'''


def main() -> int:
    """Run it; the status of the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--st", default="st", help="schemathesis' program")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    told, more = parser.parse_known_args()
    program = shutil.which(told.st)
    if program is None:
        print(f"skipped: there is no {told.st}; pip install 'schemathesis>=4'", file=sys.stderr)
        return 0
    from tests.serving import serving

    with tempfile.TemporaryDirectory() as folder:
        hooks = Path(folder) / "fuzz_hooks.py"
        hooks.write_text(HOOKS)
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": folder}
        settings = {"folder": f"{folder}/files", "records": f"{folder}/records.db", "traces": 10}
        with serving(TWO, **settings) as server:
            command = [program, "run", f"{server.url}/openapi.json", "--seed", str(told.seed)]
            command += ["--max-time", str(told.seconds), "--phases", PHASES]
            command += ["--exclude-checks", LEFT_OUT, "--request-timeout", "30", *more]
            status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
            for own in server.app.state.own.values():  # nobody asks any more
                for session in [*own.sessions._sessions.values()]:
                    own.sessions.end(session)
            return status


if __name__ == "__main__":
    sys.exit(main())
