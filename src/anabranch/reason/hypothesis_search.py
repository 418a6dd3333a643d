"""Two levels of search: what the rule might be, in words, and programs for each idea."""

from __future__ import annotations

from functools import partial
from typing import Any

from anabranch.program.answers import normalise_text
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority, mean_logp
from anabranch.reason.formalise import Fallback, code, formalise, posed
from anabranch.reason.induction import FUNCTION, examples, inducer
from anabranch.reason.kernels import sample, waves, write
from anabranch.reason.registry import MaxTokens, Retries, Samples, Temperature, TopP, strategy
from anabranch.reason.turns import ask

IDEA = "Which rule turns each input into its output? Say it in one sentence."


@strategy(
    "hypothesis_search",
    paper="Wang et al. 2023, Hypothesis search: Inductive reasoning with language models",
    summary="Rules in words, programs for each of the best; those that fit all examples vote.",
    cost="n rules in words, programs for the best",
    use="Rules to be found from examples, too hard to be written down at once.",
    fold=majority,
    runs_code=True,
)
def hypothesis_search(
    *,
    n: Samples = 8,
    keep: Samples = 3,
    programs: Samples = 2,
    retries: Retries = 1,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    fallback: Fallback = "vote",
    max_tokens: MaxTokens = 384,
) -> Strategy:
    """`n` hypotheses, of which `keep` are implemented, each by `programs` programs.

    Departures: the likeliest different hypotheses are kept, where the paper has the model
    summarise them or a person choose; all programs that fit vote, where it takes the first. A
    problem without examples is answered by chains of thought, and so is one for which no program
    fits; with `fallback="none"` the programs abstain.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        shown = examples(problem)
        if shown is None:
            root.run.remark("there are no examples `input -> output` to learn from")
        asked = posed(root, problem, IDEA) if shown else None
        chains = partial(sample, problem, root, n, max_tokens, **sampling)
        if shown is None or asked is None:
            return await chains()

        async def imagine(thought: Thought, limit: int) -> None:
            await write(thought, limit, until="\n", **sampling)
            thought.done = True

        ideas = await waves([Thought(b) for b in asked.fork(n)], imagine, limit=max_tokens)
        ideas.sort(key=mean_logp, reverse=True)
        different = list({normalise_text(idea.text): idea for idea in reversed(ideas)}.values())
        kept = different[::-1][:keep]
        covered = await together(ask(idea.branch, FUNCTION) for idea in kept)
        starts = [
            Thought(branch, idea, logp=idea.logp, logw=idea.logw, tokens=idea.tokens)
            for idea, there in zip(kept, covered, strict=True)
            if there
            for branch in idea.branch.fork(programs)
        ]
        solve = inducer(*shown)
        found = await formalise(
            problem,
            starts,
            code(**sampling),
            solve,
            retries=retries,
            limit=max_tokens,
            otherwise=chains if fallback == "vote" else None,
        )
        return found or ideas

    return run
