"""What clients keep on the server belongs to their key: others cannot see, use or push it out."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from anabranch.serve.batch import Batches
from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal
from anabranch.serve.sessions import Sessions
from anabranch.serve.store import Store


@dataclass
class Own:
    """What one key keeps. Its limits are its own too.

    Attributes:
        store: responses.
        sessions: of branches.
        batches: and files; None where the server keeps none.
    """

    store: Store
    sessions: Sessions
    batches: Batches | None = None


def own(request: Request) -> Own:
    """What belongs to the key of the request under way. Without keys, everything is everybody's."""
    found: Own = request.app.state.own[current().account.name]
    return found


def batches_of(request: Request) -> Batches:
    """Its batches and files. Raises Refusal: the server keeps none."""
    found = own(request).batches
    if found is None:
        raise Refusal(
            501, "this server keeps no files: its setting `folder` is not set", code="no_folder"
        )
    return found
