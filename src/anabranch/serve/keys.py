"""API keys: who may ask, and how much. A file holds their hashes, never the keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anabranch.errors import InputError, ResourceError
from anabranch.serve.errors import Refusal

if TYPE_CHECKING:
    from anabranch.serve.calls import Call

PREFIX = "sk-anabranch-"
MOST_BYTES = 1 << 20
MINUTE, DAY = 60, 86_400

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Quota = Annotated[int, Field(ge=1, le=2**53)] | None


class Key(BaseModel):
    """One entry of the file.

    Attributes:
        hash: SHA-256 of the key. Keys have 256 random bits, so a slow hash would add nothing.
        running: requests that generate at the same time; more of them wait.
        waiting: requests that may wait for that; more are refused.
        tokens_per_minute, tokens_per_day: of prompts and replies, all branches counted, from the
            full minute and from midnight UTC. No request begins once they are used up; those that
            run come to their end.
        priority: all its requests come before those of keys with a lower one.
        scope: keys of the same scope share computed prefixes; default: the name, so nobody's.
    """

    model_config = ConfigDict(extra="forbid")

    name: KeyName
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    running: Quota = None
    waiting: Annotated[int, Field(ge=0, le=1 << 16)] = 64
    tokens_per_minute: Quota = None
    tokens_per_day: Quota = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    scope: KeyName | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: list[Key] = []


class Allowance:
    """Tokens of a span of time: `limit` from one full multiple of `seconds` to the next."""

    def __init__(self, limit: int, seconds: int, clock: Callable[[], float]) -> None:
        self.limit, self.seconds, self._clock = limit, seconds, clock
        self._span, self._used = -1, 0

    def charge(self, tokens: int) -> None:
        """Count tokens."""
        self._turn()
        self._used += tokens

    def wait(self, pending: int = 0) -> int:
        """Seconds until there is something left beside what is pending; 0 if there is."""
        self._turn()
        if self._used + pending < self.limit:
            return 0
        return int((self._span + 1) * self.seconds - self._clock()) + 1

    def _turn(self) -> None:
        span = int(self._clock() // self.seconds)
        if span != self._span:
            self._span, self._used = span, 0


class Account:
    """What a key's requests do at present. Without keys there is one account for everybody.

    Attributes:
        name: of the key, "" without keys.
        group: for fair shares of the engine.
        scope: for the sharing of prefixes.
        priority: of its requests, where they ask for none.
        calls: requests under way.
        most_running, most_waiting: as its key has it; None: no limit of its own.
    """

    def __init__(
        self,
        key: Key | None = None,
        *,
        share_cache: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = self.group = key.name if key else ""
        self.scope = "" if key is None or share_cache else f"key {key.scope or key.name}"
        self.priority = key.priority if key else 0
        self.most_running = key.running if key else None
        self.most_waiting = key.waiting if key else None
        self.calls: set[Call] = set()
        limits = {MINUTE: key.tokens_per_minute, DAY: key.tokens_per_day} if key else {}
        self._quotas = [Allowance(n, s, clock) for s, n in limits.items() if n is not None]

    def charge(self, tokens: int, *, span: int | None = None) -> None:
        """Count tokens; those of an earlier run of the server only for the `span` they fall in."""
        for quota in self._quotas:
            if span in (None, quota.seconds):
                quota.charge(tokens)

    def _waits(self) -> list[tuple[Allowance, int]]:
        meters = {meter for call in self.calls for meter in call.meters} if self._quotas else ()
        pending = sum(meter.pending for meter in meters)
        return [(quota, quota.wait(pending)) for quota in self._quotas]

    @property
    def wait(self) -> int:
        """Seconds until there are tokens again; 0 if there are."""
        return max((wait for _, wait in self._waits()), default=0)

    def check(self) -> None:
        """Raises Refusal: the tokens are used up, those of requests under way counted."""
        for quota, wait in self._waits():
            if wait:
                name = "minute" if quota.seconds == MINUTE else "day"
                raise Refusal(
                    429,
                    f"this key's {quota.limit} tokens per {name} are used up",
                    code="quota_exceeded",
                    retry_after=wait,
                )


class Keyring:
    """All keys that are accepted.

    Args:
        keys: None: no keys are needed.
    """

    def __init__(self, keys: Sequence[Key] | None, *, share_cache: bool = False) -> None:
        self.open = Account() if keys is None else None
        self._accounts = [
            (bytes.fromhex(key.hash.partition(":")[2]), Account(key, share_cache=share_cache))
            for key in keys or ()
        ]

    @property
    def accounts(self) -> Mapping[str, Account]:
        """By name."""
        found = [self.open] if self.open else [account for _, account in self._accounts]
        return {account.name: account for account in found}

    def find(self, key: str | None) -> Account | None:
        """Whose key it is. Takes the same time whatever is given and whoever it is."""
        if self.open is not None:
            return self.open
        given = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, account in self._accounts:
            if hmac.compare_digest(digest, given):
                found = account
        return found


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises InputError: there is none, or it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a device may have no end
        if len(data) > MOST_BYTES:
            raise InputError(f"{path} is too large for a file of keys")
        keys = _File.model_validate(tomllib.loads(data.decode())).key
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no file of keys: {where}: {first['msg']}") from None
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", fix="make a key with --new-key NAME"
        ) from None
    names = [key.name.casefold() for key in keys]  # folders are named so, on any file system
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two keys of one name")
    return keys


def new_key(path: Path, name: str) -> str:
    """A new key, its hash appended to a file that only its owner may read.

    Raises:
        InputError: a name that is taken or not allowed, or a file that is no file of keys.
        ResourceError: the file cannot be written.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        entry = Key(name=name, hash=f"sha256:{digest}")
    except ValidationError:
        raise InputError(
            "a key cannot have this name", got=name, allowed="1 to 64 letters, digits, . _ -"
        ) from None
    if path.exists() and any(other.name.casefold() == name.casefold() for other in read_keys(path)):
        raise InputError("there is a key of this name", got=name, fix="choose another")
    text = f'\n[[key]]\nname = "{entry.name}"\nhash = "{entry.hash}"\n'
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(file).st_size
            try:
                if os.write(file, text.encode()) < len(text):
                    raise OSError("no space left")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)  # half an entry would make the whole file unreadable
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error}") from None
    return key


def keyring(path: Path | None, host: str, *, share_cache: bool) -> Keyring:
    """The keys that a server asks for. Without a file it is open, but to this machine only.

    Raises:
        InputError: an open server on an address that others reach, or a file without keys.
    """
    if path is not None:
        keys = read_keys(path)
        if not keys:
            raise InputError(f"{path} has no keys", fix="make one with --new-key NAME")
        return Keyring(keys, share_cache=share_cache)
    if host not in LOOPBACK:
        raise InputError(
            "without API keys the server listens on this machine only",
            got=host,
            allowed=", ".join(LOOPBACK),
            fix="make a key with `anabranch serve --keys FILE --new-key NAME`, then serve with "
            "--keys FILE",
        )
    return Keyring(None)


LOOPBACK = ("127.0.0.1", "localhost", "::1")
