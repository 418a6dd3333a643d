"""Benches that are killed, interrupted, and run beside each other on one file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anabranch.bench.records import Row
from tests.test_bench import grid, rows, run

Rows = dict[tuple[str, str, int, int], Row]

STRATEGIES = ["single", "vote(n=8)", "beam(width=2)"]
PROBLEMS = 16


def start(path: Path, *more: str) -> subprocess.Popen[str]:
    """The command, two problems at a time."""
    command = [
        sys.executable,
        "-m",
        "anabranch",
        "bench",
        "-m",
        "simulated",
        "-t",
        "copy(digits=4)",
    ]
    for name in STRATEGIES:
        command += ["-s", name]
    command += ["--problems", str(PROBLEMS), "--together", "2", "-o", str(path), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def count(path: Path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM attempts").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def wait_for(path: Path, some: int, bench: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while count(path) < some:
        assert bench.poll() is None, bench.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("unbroken") / "whole.db"
    run(path, grid(strategies=STRATEGIES, problems=PROBLEMS), together=40)
    return rows(path)


def test_killed_twice_it_ends_as_if_it_had_not_been(unbroken: Rows, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    kept: Rows = {}
    for some in (6, 16):
        bench = start(path)
        wait_for(path, some, bench)
        bench.kill()
        bench.communicate()
        assert some <= count(path) < PROBLEMS * len(STRATEGIES)
        assert kept.items() <= rows(path).items()
        kept = rows(path)
    bench = start(path)
    told = bench.communicate(timeout=60)
    assert bench.returncode == 0, told
    assert count(path) == PROBLEMS * len(STRATEGIES)
    assert rows(path) == unbroken


def test_an_interrupted_bench_shows_what_it_has_and_goes_on_later(
    unbroken: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "r.db"
    bench = start(path)
    wait_for(path, 8, bench)
    bench.send_signal(signal.SIGINT)
    stdout, stderr = bench.communicate(timeout=30)
    assert bench.returncode == 130, stderr
    assert "beam(width=2)" in stdout
    assert "best by" in stdout
    assert stderr.splitlines()[-1] == "interrupted"
    assert 8 <= count(path) < PROBLEMS * len(STRATEGIES)
    run(path, grid(strategies=STRATEGIES, problems=PROBLEMS), together=40)
    assert rows(path) == unbroken


def test_two_benches_on_one_file_share_the_work(unbroken: Rows, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    both = [start(path), start(path)]
    for bench in both:
        told = bench.communicate(timeout=60)
        assert bench.returncode == 0, told
    assert rows(path) == unbroken
    with sqlite3.connect(path) as db:
        shares = db.execute("SELECT count(*) FROM attempts GROUP BY session").fetchall()
    assert len(shares) == 2
    assert sum(share for (share,) in shares) == PROBLEMS * len(STRATEGIES)
