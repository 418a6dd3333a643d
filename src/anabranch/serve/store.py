"""Responses of one key that are kept in memory: the latest, up to a number and a size."""

from __future__ import annotations

import json

from anabranch.serve.errors import Refusal
from anabranch.serve.respond import Kept


class Store:
    """Responses by id. The oldest that are over make room for new ones.

    Args:
        most: responses.
        most_bytes: of those that are over, as JSON.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: dict[str, Kept] = {}
        self._sizes: dict[str, int] = {}

    def add(self, kept: Kept) -> None:
        """Keep one. Raises Refusal when all that are kept are under way."""
        if len(self._kept) >= self._most:
            self._forget_one()
        self._kept[kept.response.told["id"]] = kept

    def get(self, name: str) -> Kept:
        """One of them. Raises Refusal."""
        kept = self._kept.get(name)
        if kept is None:
            raise Refusal(404, "there is no response of this id", param="response_id")
        return kept

    def remove(self, name: str) -> Kept:
        """Forget one. Raises Refusal."""
        kept = self.get(name)
        del self._kept[name]
        self._sizes.pop(name, None)
        return kept

    def ended(self, kept: Kept) -> None:
        """One is over: from now on its size counts."""
        name = kept.response.told["id"]
        if name not in self._kept:
            return
        given = [item.model_dump(exclude_none=True) for item in kept.given]
        self._sizes[name] = len(json.dumps([kept.response.told, given, kept.log]))
        while sum(self._sizes.values()) > self._most_bytes:
            self._forget_one()

    def _forget_one(self) -> None:
        oldest = next((name for name in self._kept if name in self._sizes), None)
        if oldest is None:
            raise Refusal(429, "too many responses are under way", code="store_full", retry_after=5)
        self.remove(oldest)
