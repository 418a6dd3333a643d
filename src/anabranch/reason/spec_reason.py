"""Speculative reasoning: a small model drafts the steps, the large one accepts or rewrites them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from anabranch.backends.philox import derive
from anabranch.program.answers import extract
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.registry import Text
from anabranch.program.types import Problem, Step, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import population, sampler
from anabranch.reason.prompts import messages
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    Range,
    Rounds,
    Share,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)
from anabranch.verify.registry import rate


@strategy(
    "spec_reason",
    paper="Pan et al. 2025, SpecReason: fast and accurate inference-time compute via speculative "
    "reasoning, section 4",
    summary="A small model drafts each step; the large one grades it, and rewrites what is poor.",
    cost="1 solution, most of it by the small model",
    use="A large model, slow on this machine, beside a small one of the same kind.",
    fold=majority,
)
def spec_reason(
    *,
    draft: Annotated[str, Text(500)] = "",
    judge: JudgedBy = "self_rating(of='last', scale='digits', prior='none')",
    threshold: Share = 0.75,
    own: Annotated[int, Range(0, 1024)] = 0,
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 0.6,
) -> Strategy:
    """One chain of at most `rounds` steps, the first `own` of them by the large model.

    Departures: a grade is the expectation over the digits, not one digit drawn; a draft is kept
    from `threshold` on, of 1.

    Args:
        draft: name, file or folder of the small model, loaded once; empty: the model itself, which
            filters its steps but saves nothing.
    """

    needs_partial("spec_reason", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        write = sampler(problem, until=boundary(step), temperature=temperature)
        thought, small = Thought(root.fork()), await _small(problem, root)
        root.run.thoughts = [thought]
        for index in range(rounds):
            if thought.done or budget.over:
                break
            if index >= own and small is not None:
                # A candidate while it is being written: it may be all there is.
                ahead = replace(thought, branch=small.fork(), parent=thought)
                root.run.thoughts = [thought, ahead]
                await write(ahead, step_tokens)
                drafted = ahead.branch.last
                if drafted and drafted.text and (t := await _accept(problem, thought, drafted)):
                    small.drop("went on in its draft")
                    thought, small = t, ahead.branch
                    root.run.thoughts = [thought]
                    continue
                ahead.branch.drop("rejected")
            await population([thought], write, limit=step_tokens)
            if small is not None and thought.branch.last is not None:
                await small.force(thought.branch.last.text)
        return [thought] if thought.text else root.run.thoughts

    async def _small(problem: Problem, root: Branch) -> Branch | None:
        """Where the small model writes; None when the budget does not cover its prompt."""
        if not draft:
            return root.fork()
        run, engine, asked = root.run, await root.engine.other(draft), messages(problem)
        if len(engine.tokenizer.chat(asked)) > run.budget.left_tokens or run.budget.over:
            run.remark("the budget did not cover the small model's prompt: the large one wrote all")
            return None
        return engine.open(asked, seed=derive(run.seed, 1), run=run)

    async def _accept(problem: Problem, thought: Thought, drafted: Step) -> Thought | None:
        """The thought with the step, if its grade is high enough."""
        branch = thought.branch.fork()
        forced = await branch.force(drafted.text)
        if forced.stop == "forced":
            longer = _appended(problem, thought, branch, forced, drafted)
            (grade,) = await rate(judge, problem, [longer])
            branch.run.note("grade", branch=branch.id, grade=grade, accepted=grade >= threshold)
            if grade >= threshold:
                thought.branch.drop("went on with a draft")
                return longer
        branch.drop("rejected")
        return None

    return run


def _appended(
    problem: Problem, thought: Thought, branch: Branch, forced: Step, drafted: Step
) -> Thought:
    """A thought with a drafted step: as likely as the large model finds it, and as long as the
    small one made it."""
    ended = drafted.stop == "end"
    answer = extract(branch.text, problem, done=ended)
    return Thought(
        branch,
        thought,
        answer,
        logp=thought.logp + forced.logp,
        tokens=thought.tokens + len(drafted.tokens),
        done=ended or answer is not None,
        text=branch.text,
    )
