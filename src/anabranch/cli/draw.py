"""A program's tree for the terminal. What a model wrote can neither colour nor steer it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from anabranch.program.clean import clean as clean
from anabranch.program.trace import TracedBranch, TraceTree

BRIEF_CHILDREN, BRIEF_DEPTH = 16, 6
FULL_DEPTH = 24
PIPE_WIDTH = 1000


def plain_console(*, stderr: bool = False) -> Console:
    """A console that colours nothing unasked, and fits lines to a terminal only."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.soft_wrap, console.width = True, PIPE_WIDTH
    return console


def snippet(text: str, width: int = 60) -> str:
    """The end of a text, on one line: where thoughts differ."""
    line = " ".join(clean(text[-4 * width :]).split())
    cut = len(line) > width or len(text) > 4 * width
    return f"…{line[1 - width :]}" if cut else line


def draw_tree(tree: TraceTree, *, full: bool = False) -> RenderableType:
    """Every root with its branches.

    Args:
        full: all branches with all their text; else the first few, without those that only tried
            something out.
    """
    drawings: list[Tree] = []
    work: list[tuple[TracedBranch, Tree | None, int]] = [(b, None, 0) for b in tree.roots[::-1]]
    while work:
        branch, above, depth = work.pop()
        children = [tree.branches[name] for name in branch.children]
        shown = children if full else _brief(children)
        if depth >= (FULL_DEPTH if full else BRIEF_DEPTH):
            shown = []
        label = _label(branch, full)
        if hidden := len(children) - len(shown):
            label.append(f"  ({hidden} not shown)", "dim")
        node = above.add(label) if above is not None else Tree(label, guide_style="dim")
        if above is None:
            drawings.append(node)
        work += [(child, node, depth + 1) for child in shown[::-1]]
    return Group(*drawings)


def _brief(children: Sequence[TracedBranch]) -> list[TracedBranch]:
    """The most telling children, in order."""
    grown = [c for c in children if c.sampled_tokens or c.children or c.joined or c.kept]
    ranked = sorted(grown, key=lambda child: not child.kept)
    chosen = {child.id for child in ranked[:BRIEF_CHILDREN]}
    return [child for child in grown if child.id in chosen]


def _label(branch: TracedBranch, full: bool) -> Text:
    """One line: id, tokens, mean log-probability, answer, fate; its text below if asked for."""
    style = "" if branch.kept else "dim"
    label = Text(clean(branch.id)[:40], style="bold" if branch.kept else "dim")
    if branch.parent is None:
        label.append(f"  prompt, {branch.start} tokens", style)
    if branch.sampled_tokens:
        label.append(f"  {branch.sampled_tokens} tokens", style)
        label.append(f"  {branch.mean_logp:.2f} per token", "dim")
    if branch.forced_tokens:
        label.append(f"  {branch.forced_tokens} forced", style)
    if branch.joined:
        label.append(f"  joins {clean(', '.join(branch.joined))[:80]}", style)
    for option, score in branch.scores if full else ():
        label.append(f"\n{snippet(option)}: {score:.2f}", "dim")
    if branch.answer is not None:
        label.append(f"  → {snippet(branch.answer, 40)}", "bold green" if branch.kept else "dim")
    if branch.parent is not None:
        label.append(f"  {_fate(branch)}", "green" if branch.kept else "dim")
    if full and branch.text:
        label.append(f"\n{clean(branch.text)}", style)
    return label


def _fate(branch: TracedBranch) -> str:
    if branch.kept:
        return "kept"
    if branch.dropped is None:
        return "live"
    return f"dropped: {snippet(branch.dropped, 40)}" if branch.dropped else "dropped"
