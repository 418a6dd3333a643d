"""Growing towards a target other than the model: a blend of branches, and what a rule allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anabranch.backends.base import F32, Drawn, Draws
from anabranch.engine.constraints import Choice, Constraint, draw_allowed
from anabranch.engine.core import DrawBuilder, Want, likeliest
from anabranch.engine.requests import Draw, Result, Score
from anabranch.errors import InputError, check_range
from anabranch.program.tasks import together
from anabranch.program.types import Stop

if TYPE_CHECKING:
    from anabranch.program.branch import Branch


class Shape:
    """What tokens of one `extend` are drawn from.

    The target of a text is, unnormalised, the product over its tokens of
    `prod_b p_b(token) ** weight_b`, and 0 where the rule is broken. One token after the other, the
    logits of all branches are read in one pass, and the token drawn is appended to all of them.

    Args:
        leader: the branch that is extended.
        allow: the rule, or None.
        written: tokens of its path that stand under the rule already.
        blend: exponents by branch, the leader among them; None: the leader alone, with 1.

    Raises:
        InputError: an exponent that is not finite, no leader, branches of other runs, dropped ones,
            or a rule that cannot be read.
    """

    def __init__(
        self,
        leader: Branch,
        allow: Constraint | None,
        written: Sequence[int],
        blend: Mapping[Branch, float] | None,
    ) -> None:
        weights = {leader: 1.0} if blend is None else dict(blend)
        if leader not in weights:
            raise InputError("the branch itself is not in its blend", got=[b.id for b in weights])
        for branch, weight in weights.items():
            check_range(f"weight of {branch.id} in the blend", weight, -100, 100)
            if branch.run is not leader.run:
                raise InputError("a blend takes branches of one program", got=branch.id)
        # A branch without weight is advanced, but not read.
        self._read = [leader, *(b for b in weights if weights[b] and b is not leader)]
        self.members = [*self._read, *(b for b in weights if b not in self._read)]
        self._weights = [weights[b] for b in self._read]
        self._leader, self._tokenizer = leader, leader.engine.tokenizer
        self._backend = leader.engine.core.decoder.backend
        self._state = allow.start(self._tokenizer, written) if allow is not None else None
        self._draws, self._scores = DrawBuilder(), DrawBuilder()
        self._starts = {b: b.mark.position for b in self.members}

    async def write(self, request: Draw) -> Stop | None:
        """Draw tokens until the request has enough of them.

        Returns:
            "complete" when the rule leaves nothing but the end, "stuck" when it leaves nothing at
            all; None for every other end.
        """
        try:
            while not (request.done or request.expired()):
                if self._complete():
                    return "complete"
                rows = await self._logits(request)
                if rows is None:  # a branch was dropped
                    return None
                result = self._draw(rows, request)
                if result is None:
                    return "stuck"
                self._append(result, request)
            return "complete" if self._complete() else None
        finally:
            for branch in self.members:
                branch._release()

    def trim(self, text: str, tokens: int) -> None:
        """Cut the other branches back to what the leader has kept, and write that down."""
        for branch in self.members[1:]:
            if not branch.live:
                continue
            start = self._starts[branch]
            branch._rewind(start + tokens)
            branch.run.note(
                "force",
                branch=branch.id,
                start=start,
                end=start + tokens,
                text=text,
                logp=0.0,
                logq=0.0,
                entropy=0.0,
                stop="forced",
            )

    def _complete(self) -> bool:
        if self._state is None or not self._state.done():
            return False
        mask = self._state.mask()
        return mask is not None and not mask.any()

    async def _logits(self, request: Draw) -> list[F32] | None:
        reads = [branch._hold() for branch in self.members][: len(self._read)]
        await together(branch._run(read) for branch, read in zip(self._read, reads, strict=True))
        for i, read in enumerate(reads):
            request.cost.computed += read.cost.computed
            request.cost.recomputed += read.cost.recomputed
            request.cost.passes += read.cost.passes if i == 0 else 0
        rows = [read.result for read in reads]
        if any(row is None for row in rows) or not all(b.live for b in self.members):
            return None
        return [row for row in rows if row is not None]

    def _draw(self, rows: list[F32], request: Draw) -> Result | None:
        row = request.cursor.position - 1
        draws = self._draws.of([Want(request, row, 0)], 0)
        blended = self._weights != [1.0]
        scores = self._blend(rows) if blended else rows[0]
        choice = self._choose(scores, draws)
        if choice is None:
            return None
        model = self._score(rows[:1], [choice.token])
        logp, entropy = float(model.logp[0]), float(model.entropy[0])
        shift = float(scores[choice.token]) - logp if blended else 0.0
        top = tuple(
            (token, float(self._score(rows[:1], [token]).logp[0]))
            for token in (likeliest(rows[0], request.top) if request.top else ())
        )
        return Result(choice.token, logp, choice.logq, entropy, shift, top)

    def _choose(self, scores: F32, draws: Draws) -> Choice | None:
        if self._state is not None:
            ends = self._tokenizer.ends
            return draw_allowed(self._backend, scores, draws, self._state, ends)
        drawn = self._backend.draw(scores[None], draws)
        return Choice(int(drawn.token[0]), float(drawn.logq[0]))

    def _blend(self, rows: list[F32]) -> F32:
        """`[vocab]` weighted sum of log-probabilities.

        Their normalisers are the backend's own sums: numpy's would depend on the machine.
        """
        tops = [int(row.argmax()) for row in rows]
        logps = self._score(rows, tops).logp
        total = np.zeros_like(rows[0])
        for row, top, logp, weight in zip(rows, tops, logps, self._weights, strict=True):
            if not weight:
                continue
            share = np.float32(weight) * (row - (row[top] - logp))
            # A token that one branch rules out stays out, also where its weight is negative.
            total = np.where(np.isinf(share), np.float32(-np.inf), total + share)
        return total

    def _score(self, rows: list[F32], tokens: Sequence[int]) -> Drawn:
        """What the model says of one token per row, rows as in `_read`."""
        wants = []
        for i, (branch, token) in enumerate(zip(self._read, tokens, strict=False)):
            cursor = branch._cursor
            score = Score(cursor, cursor.position, [token])
            wants.append(Want(score, cursor.position - 1, i))
        return self._backend.draw(np.stack(rows), self._scores.of(wants, 0))

    def _append(self, result: Result, request: Draw) -> None:
        for branch in self.members:
            request.cost.cached += branch._append(result.token)
        if self._state is not None and result.token not in self._tokenizer.ends:
            self._state = self._state.next(result.token)
        request.accept(result)
