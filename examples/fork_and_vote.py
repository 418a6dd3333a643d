"""Self-consistency spelled out on the primitives: fork, extend, read, count.

`anabranch solve --strategy vote` does this with a budget, a trace and better reading of answers.
"""

import asyncio
import re
from collections import Counter

import anabranch

QUESTION = (
    "A farmer has 3 fields with 14 apple trees each. A storm fells 9 trees. How many are left? "
    "Think step by step, and end with: The answer is X."
)


async def vote(lm: anabranch.LM, n: int = 8) -> None:
    root = lm.engine.open([{"role": "user", "content": QUESTION}], seed=1)
    branches = root.fork(n)
    await asyncio.gather(*(branch.extend(200, temperature=0.7) for branch in branches))
    numbers = [re.findall(r"-?\d+", branch.text) for branch in branches]
    votes = Counter(found[-1] for found in numbers if found)
    for answer, count in votes.most_common():
        print(f"{answer:>8}  {'█' * count}")
    usage = root.run.usage
    print(
        f"prompt of {usage.prompt_tokens} tokens computed once for {n} branches: "
        f"{usage.computed_tokens} tokens computed, {usage.cached_tokens} shared"
    )
    root.run.drop_all()


with anabranch.load("qwen2.5-coder-0.5b") as model:
    model.run(vote(model))
