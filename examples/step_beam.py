"""A search in twenty lines: at every sentence keep the likelier half, fork it, go on.

Forking costs nothing: each kept thought lives on in two branches that share its pages.
"""

import asyncio

import anabranch

QUESTION = "Why does ice float on water? Explain in three short sentences."


async def beam(lm: anabranch.LM, width: int = 4, steps: int = 3) -> None:
    root = lm.engine.open([{"role": "user", "content": QUESTION}], seed=7)
    thoughts = [(branch, 0.0, 0) for branch in root.fork(width)]
    for _ in range(steps):
        written = await asyncio.gather(
            *(branch.extend(40, until=". ", temperature=0.9) for branch, _, _ in thoughts)
        )
        thoughts = [
            (branch, logp + step.logp, count + len(step.tokens))
            for (branch, logp, count), step in zip(thoughts, written, strict=True)
        ]
        thoughts.sort(key=lambda t: t[1] / max(1, t[2]), reverse=True)
        best, rest = thoughts[: width // 2], thoughts[width // 2 :]
        for branch, _, _ in rest:
            branch.drop("less likely")
        thoughts = [(twin, *score) for branch, *score in best for twin in branch.fork(2)]
    branch, logp, count = thoughts[0]
    print(f"{logp / max(1, count):.2f} nats per token:{branch.text}")
    root.run.drop_all()


with anabranch.load("qwen2.5-coder-0.5b") as model:
    model.run(beam(model))
