"""Vocabularies: tokenizers as files describe them, checked and never run.

A GGUF header names the way to cut words (`tokenizer.ggml.pre`); a `tokenizer.json` spells out its
steps. Both are matched against what is known here. A step or an expression that is not known is
refused, so nothing that a file brings along is executed.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np

from anabranch.errors import FileFormatError, UnsupportedError

_MAX_TOKENS = 1 << 20
_MAX_JSON_BYTES = 64 << 20


class Kind(IntEnum):
    """What a token is, as GGUF numbers it (`tokenizer.ggml.token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


_NORMAL = int(Kind.NORMAL)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Words:
    """How byte-level tokenizers cut text into words, and what they do with them.

    Attributes:
        patterns: applied one after the other; matches and what lies between them are words.
        nfc: text is composed (Unicode NFC) first.
        whole: a word that is a token is that token, whatever the merges say.
        add_bos: text starts with the bos token if the file does not say.
    """

    patterns: tuple[str, ...] = ()
    nfc: bool = False
    whole: bool = False
    add_bos: bool = False


_LLAMA3_WORDS = Words((_LLAMA3,), whole=True, add_bos=True)
_DIGIT_WORDS = Words((_DIGIT, _GPT2))
_WORDS = {
    "default": Words((_GPT2,)),
    "deepseek-r1-qwen": Words((_QWEN2,), nfc=True),
    "gpt-2": Words((_GPT2,)),
    "llama-bpe": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama3": _LLAMA3_WORDS,
    "qwen2": Words((_QWEN2,), nfc=True),
    "refact": _DIGIT_WORDS,
    "smaug-bpe": _LLAMA3_WORDS,
    "smollm": _DIGIT_WORDS,
    "starcoder": _DIGIT_WORDS,
    "tekken": Words((_TEKKEN,), whole=True, add_bos=True),
}
"""By `tokenizer.ggml.pre`."""

_PATTERNS = frozenset(pattern for words in _WORDS.values() for pattern in words.patterns)

_END_NAMES = frozenset(
    [
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"),
        *("<end_of_turn>", "<eos>", "<｜end▁of▁sentence｜>"),
    ]
)
"""Tokens that end a turn or a text wherever they are not ordinary text, whatever the file says."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class Vocabulary:
    """A tokenizer as its file describes it, whatever the format.

    Attributes:
        path: the file, for messages.
        texts, kinds: by token id. Byte-level tokens are spelt in byte characters, bytes of
            SentencePiece as `<0x0A>`.
        words: how a byte-level tokenizer cuts text; None means SentencePiece.
        merges: pairs of texts, best first; None: as the scores have it.
        scores: by token id, if there are no merges.
        space: where a space is put in front: nowhere; before "every" text, those between control
            tokens included; or before the "first" unless it has one.
        bos, eos, unknown: token ids.
        ends: tokens that end a turn or a text, `eos` among them.
        add_bos: whether text starts with `bos`.
        template: the chat template, unchecked.
    """

    path: Path
    texts: list[str]
    kinds: list[int]
    words: Words | None = None
    merges: list[tuple[str, str]] | None = None
    scores: list[float] = field(default_factory=list)
    space: Literal["none", "every", "first"] = "none"
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    ends: set[int] = field(default_factory=set)
    add_bos: bool = False
    template: str | None = None

    def settle(self) -> Vocabulary:
        """Find the ends, see that bos and ends are control tokens, and check the texts.

        Raises FileFormatError.
        """
        if not 1 <= len(self.texts) <= _MAX_TOKENS:
            raise FileFormatError(
                self.path, f"{len(self.texts)} tokens (allowed: 1 to {_MAX_TOKENS})"
            )
        try:
            "".join(self.texts).encode()
        except UnicodeEncodeError:
            raise FileFormatError(self.path, "a token is not valid Unicode") from None
        for i, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind == _NORMAL:  # a quarter of a million of them: the others are few
                continue
            if kind == Kind.BYTE and not _BYTE_TOKEN.fullmatch(text):
                raise FileFormatError(self.path, f"byte token {i} is {reprlib.repr(text)}")
            if text in _END_NAMES and kind in (Kind.CONTROL, Kind.USER):
                self.ends.add(i)
        self.ends |= {self.eos} if self.eos is not None else set()
        for i in self.ends | ({self.bos} if self.bos is not None else set()):
            self.kinds[i] = Kind.CONTROL
        return self


def gguf_vocabulary(metadata: Mapping[str, object], path: Path) -> Vocabulary:
    """From the `tokenizer.*` values of a GGUF header.

    Raises:
        FileFormatError: values are missing, of a wrong type, or contradict each other.
        UnsupportedError: a kind of tokenizer, or a way to cut words, that is not known here.
    """
    header = _Header(metadata, path)
    family = header.text("model")
    if family not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"{path}: this version does not know this kind of tokenizer",
            got=family,
            allowed="gpt2 (byte-level BPE), llama (SentencePiece BPE)",
        )
    texts = header.texts("tokens")
    count = len(texts)
    ends = {header.token("eot", count), header.token("eom", count)}
    template = metadata.get("tokenizer.chat_template")
    vocabulary = Vocabulary(
        path,
        texts,
        _gguf_kinds(header, count),
        bos=header.token("bos", count),
        eos=header.token("eos", count),
        unknown=header.token("unknown", count),
        ends={token for token in ends if token is not None},
        template=template if isinstance(template, str) else None,
    )
    if family == "gpt2":
        vocabulary.words = words = _gguf_words(header)
        vocabulary.merges = _merges(path, header.texts("merges"))
        vocabulary.add_bos = header.flag("add_bos_token", words.add_bos)
    else:
        vocabulary.scores = header.numbers("scores", count)
        vocabulary.space = "every" if header.flag("add_space_prefix", True) else "none"
        vocabulary.add_bos = header.flag("add_bos_token", True)
    return vocabulary.settle()


class _Header:
    """The tokenizer's values of a GGUF header, by what follows `tokenizer.ggml.`, types checked."""

    def __init__(self, metadata: Mapping[str, object], path: Path) -> None:
        self.metadata, self.path = metadata, path

    def fault(self, key: str, what: str) -> FileFormatError:
        return FileFormatError(self.path, f"tokenizer.ggml.{key} {what}")

    def text(self, key: str, default: str = "") -> str:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, str):
            raise self.fault(key, "is not text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.fault(key, "is neither true nor false")
        return bool(value)

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list) or set(map(type, value)) - {str}:
            raise self.fault(key, "is missing" if value is None else "is not a list of texts")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` finite numbers."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            raise self.fault(key, "is missing")
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            array = np.empty(0, object)
        if array.shape != (count,) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise self.fault(key, f"is not a list of {count} numbers, one for each token")
        numbers: list[float] = array.tolist()
        return numbers

    def token(self, key: str, count: int) -> int | None:
        """A token id below `count`."""
        value = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.fault(f"{key}_token_id", "is not a number")
        if not 0 <= value < count:
            raise self.fault(f"{key}_token_id", f"is {value}, of {count} tokens")
        return int(value)


def _gguf_kinds(header: _Header, count: int) -> list[int]:
    if "tokenizer.ggml.token_type" not in header.metadata:
        return [Kind.NORMAL] * count
    kinds = [int(kind) for kind in header.numbers("token_type", count)]
    if unknown := set(kinds).difference(Kind):
        raise header.fault("token_type", f"has the unknown type {min(unknown)}")
    return kinds


def _gguf_words(header: _Header) -> Words:
    name = header.text("pre", "default")
    if name not in _WORDS:
        raise UnsupportedError(
            f"{header.path}: this version does not know how this tokenizer cuts words",
            got=name,
            allowed=", ".join(sorted(_WORDS)),
        )
    return _WORDS[name]


def _merges(path: Path, merges: Sequence[object]) -> list[tuple[str, str]]:
    """Pairs of texts, each from "left right" or from a list of two."""
    pairs = []
    for merge in merges:
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or set(map(type, pair)) != {str}:
            raise FileFormatError(path, f"merge {reprlib.repr(merge)} is not two tokens")
        pairs.append((pair[0], pair[1]))
    return pairs


def folder_vocabulary(folder: Path) -> Vocabulary:
    """From `tokenizer.json` and, where present, `tokenizer_config.json`, `config.json` (for the
    number of tokens), `generation_config.json` (for the ends) and `chat_template.jinja`.

    Raises:
        FileFormatError: files are missing, broken, or contradict each other.
        UnsupportedError: a kind of tokenizer, or a step of one, that is not known here.
    """
    path = folder / "tokenizer.json"
    data, config = _read_json(path), _read_json(folder / "tokenizer_config.json") or {}
    model = (data or {}).get("model")
    if data is None or not isinstance(model, dict):
        raise FileFormatError(path, "is missing, or has no model")
    vocabulary = _folder_tokens(path, data, model, _padded_size(folder))
    _folder_steps(vocabulary, data, model)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise FileFormatError(path, "has no list of merges")
    vocabulary.merges = _merges(path, merges)
    ids = {text: i for i, text in enumerate(vocabulary.texts) if text}
    vocabulary.bos = _named(ids, config.get("bos_token"))
    vocabulary.eos = _named(ids, config.get("eos_token"))
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = _puts_first(data.get("post_processor"), vocabulary)
    vocabulary.add_bos = add_bos
    ends = (_read_json(folder / "generation_config.json") or {}).get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if isinstance(end, int) and 0 <= end < len(vocabulary.texts):
            vocabulary.ends.add(end)
    vocabulary.template = _folder_template(folder, config)
    return vocabulary.settle()


def _folder_tokens(
    path: Path, data: Mapping[str, object], model: Mapping[str, object], size: int
) -> Vocabulary:
    """Texts and kinds of all tokens; ids below `size` that no token has are unused."""
    entries, added = model.get("vocab"), data.get("added_tokens") or []
    if not isinstance(entries, dict) or not isinstance(added, list):
        raise FileFormatError(path, "has no vocabulary")
    tokens: list[tuple[str, object, Kind]] = [(t, i, Kind.NORMAL) for t, i in entries.items()]
    for entry in added:
        match entry:
            case {"content": str(text), "id": i, "special": bool(special)}:
                tokens.append((text, i, Kind.CONTROL if special else Kind.USER))
            case _:
                raise FileFormatError(path, f"{reprlib.repr(entry)} is not an added token")
    count = size
    for text, i, _ in tokens:
        if type(i) is not int or not 0 <= i < _MAX_TOKENS:
            fault = f"token {reprlib.repr(text)} has the id {reprlib.repr(i)}"
            raise FileFormatError(path, f"{fault} (allowed: 0 to {_MAX_TOKENS - 1})")
        count = max(count, i + 1)
    vocabulary = Vocabulary(path, [""] * count, [Kind.UNUSED] * count)
    for text, i, kind in tokens:
        assert isinstance(i, int)
        is_byte = kind == Kind.NORMAL and model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(text)
        vocabulary.texts[i], vocabulary.kinds[i] = text, Kind.BYTE if is_byte else kind
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in entries:
        vocabulary.unknown = entries[unknown]
        vocabulary.kinds[entries[unknown]] = Kind.UNKNOWN
    return vocabulary


def _folder_steps(
    vocabulary: Vocabulary, data: Mapping[str, object], model: Mapping[str, object]
) -> None:
    """Read normalizer and pre-tokenizer into `words` and `space`; refuse what is not known."""
    patterns: list[str] = []
    nfc = byte_level = False
    for step in (*_steps(data.get("normalizer")), *_steps(data.get("pre_tokenizer"))):
        match step:
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass  # what SentencePiece always does
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # Gemma's, when no space is left
            case {"type": "Prepend", "prepend": "▁"}:
                vocabulary.space = "every"
            case {"type": "Metaspace", "prepend_scheme": "first", "split": False}:
                vocabulary.space = "first"
            case {"type": "Metaspace", "prepend_scheme": "never", "split": False}:
                pass
            case {"type": "NFC"}:
                nfc = True
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(_DIGIT)
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if (
                pattern in _PATTERNS and not step.get("invert")
            ):
                patterns.append(pattern)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                byte_level = True
                patterns += [_GPT2] if step.get("use_regex", True) else []
            case _:
                raise _unknown(vocabulary.path, step)
    for key in ("continuing_subword_prefix", "dropout", "end_of_word_suffix"):
        if model.get(key):
            raise _unknown(vocabulary.path, {key: model[key]})
    if model.get("type", "BPE") != "BPE" or byte_level == bool(model.get("byte_fallback")):
        raise _unknown(vocabulary.path, {"type": model.get("type")})
    if byte_level:
        whole = model.get("ignore_merges") is True
        vocabulary.words = Words(tuple(patterns), nfc=nfc, whole=whole)
    elif nfc or patterns:
        raise _unknown(vocabulary.path, data.get("pre_tokenizer"))


def _unknown(path: Path, part: object) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: this version does not know such a tokenizer",
        got=part,
        allowed="byte-level BPE with word patterns as in its list, or BPE with byte fallback",
    )


def _steps(step: object) -> list[dict[str, object]]:
    """The steps of a normalizer or a pre-tokenizer, sequences unfolded."""
    match step:
        case {"type": "Sequence", "normalizers": [*parts]}:
            return [leaf for part in parts for leaf in _steps(part)]
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return [leaf for part in parts for leaf in _steps(part)]
        case dict():
            return [step]
    return []


def _named(ids: Mapping[str, int], token: object) -> int | None:
    """The id of a token given as its text, or as `{"content": text}`."""
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None


def _puts_first(processor: object, vocabulary: Vocabulary) -> bool:
    """Whether a post-processor puts bos in front of a text."""
    match processor:
        case {"type": "Sequence", "processors": [*parts]}:
            return any(_puts_first(part, vocabulary) for part in parts)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": text}}, *_]}:
            return vocabulary.bos is not None and text == vocabulary.texts[vocabulary.bos]
    return False


def _folder_template(folder: Path, config: Mapping[str, object]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read(file).decode("utf-8", "replace")
    template = config.get("chat_template")
    for entry in template if isinstance(template, list) else []:
        match entry:
            case {"name": "default", "template": str(default)}:
                return default
    return template if isinstance(template, str) else None


def _padded_size(folder: Path) -> int:
    """The number of tokens that the model's embedding has, if `config.json` says."""
    config = _read_json(folder / "config.json") or {}
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    return size if isinstance(size, int) and 0 <= size <= _MAX_TOKENS else 0


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}") from error
    if len(data) > _MAX_JSON_BYTES:
        raise FileFormatError(path, f"more than {_MAX_JSON_BYTES >> 20} MiB")
    return data


def _read_json(path: Path) -> dict[str, object] | None:
    """A JSON object, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, "not a JSON object")
    return value
