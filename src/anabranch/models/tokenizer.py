"""Text to token ids and back, exactly as the model's original tokenizer does it.

Two families, both byte-pair encodings run by the `tokenizers` library. *Byte-level* (GPT-2, Llama
3, Qwen, SmolLM): text is cut into words by regular expressions, and the bytes of a word are merged
by a ranked list. *SentencePiece* (Llama 2, Mistral, Gemma): the characters of the whole text are
merged, best score first; characters that are in no token fall back to byte tokens.

Control tokens (`<|im_end|>`) stand for no text. The text of one is ordinary text unless `special`
is asked for. User-defined tokens (`<tool_call>`, Gemma's runs of newlines) are text, and are found
in text before anything else is.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from os.path import isdir
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from anabranch.errors import FileFormatError, InputError
from anabranch.models.chat import ChatTemplate, ControlTokens, check_messages
from anabranch.models.vocabulary import Kind, Vocabulary, folder_vocabulary, gguf_vocabulary

Indices = npt.NDArray[np.int64]

MAX_TEXT_CHARS = 4_000_000

_MAX_VOCAB_CHARS = 1 << 23
_MAX_TOKEN_CHARS = 512
_MAX_MERGES = 1 << 21
_SLOT_SHIFT = np.uint64(64 - 22)

_CONTROLS = frozenset((Kind.UNKNOWN, Kind.CONTROL))
_SILENT = _CONTROLS | {Kind.UNUSED}
_MERGED = frozenset((Kind.NORMAL, Kind.USER))
_SPACE = "▁"


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level tokens (GPT-2): printable bytes for
    themselves, the others in order for the characters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class _ModelFile(Protocol):
    """What a tokenizer needs of an opened model file."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, object]: ...


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        vocab_size: number of token ids.
        bos: the token that opens a text, if there is one.
        add_bos: whether `prompt` starts with it.
        ends: tokens that end a turn or a text.
        has_chat_template: whether the model was made for conversations.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        texts, bos, eos = vocabulary.texts, vocabulary.bos, vocabulary.eos
        self._texts, self._kinds = texts, vocabulary.kinds
        self._byte_level, self._space = vocabulary.words is not None, vocabulary.space
        self.vocab_size = len(texts)
        self.bos, self.add_bos = bos, vocabulary.add_bos and bos is not None
        self.ends = frozenset(vocabulary.ends)
        self._core = _core(vocabulary)
        self._control = ControlTokens(
            {text: i for i, text in enumerate(texts) if self._kinds[i] in _CONTROLS}
        )
        self.has_chat_template = bool(vocabulary.template)
        variables = {
            "bos_token": "" if bos is None else texts[bos],
            "eos_token": "" if eos is None else texts[eos],
        }
        self._template = ChatTemplate(
            vocabulary.template or "", vocabulary.path, self._control, variables
        )

    @classmethod
    def of(cls, file: _ModelFile) -> Tokenizer:
        """The tokenizer of an opened model: a GGUF file or a folder."""
        if isdir(file.path):
            return cls.from_folder(file.path)
        return cls.from_gguf(file.metadata, file.path)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], path: Path) -> Tokenizer:
        """From the `tokenizer.*` values of a GGUF header.

        Raises:
            FileFormatError: values are missing, of a wrong type, or contradict each other.
            UnsupportedError: a kind of tokenizer, or a way to cut words, that is not known here.
        """
        return cls(gguf_vocabulary(metadata, path))

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From `tokenizer.json` and, where present, `tokenizer_config.json`, `config.json`,
        `generation_config.json` and `chat_template.jinja`.

        Raises:
            FileFormatError: files are missing, broken, or contradict each other.
            UnsupportedError: a kind of tokenizer that is not known here.
        """
        return cls(folder_vocabulary(folder))

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            special: take the text of control tokens in `text` for these tokens.
            start: False for text that continues other text: no space is put in front, as some
                SentencePiece models have it at the start.

        Raises:
            InputError: not valid Unicode, or longer than `MAX_TEXT_CHARS`.
        """
        _check_text(text)
        if not special:
            return self._ordinary(text, start)
        return self._parts(self._control.split(text), start)

    def _parts(self, parts: Sequence[str | int], start: bool = True) -> list[int]:
        """Ids of ordinary texts and control tokens in turn."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._ordinary(part, start and (i == 0 or self._space == "every"))
        return ids

    def _ordinary(self, text: str, start: bool) -> list[int]:
        twice = self._space == "first" and text.startswith((" ", _SPACE))
        if start and text and self._space != "none" and not twice:
            text = " " + text
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens: the inverse of `encode`. Invalid bytes become U+FFFD.

        A space that `encode` puts in front is taken away again, so tokens that continue a text are
        for `stream` or `token_bytes`, which take nothing away.

        Args:
            special: write control tokens out instead of leaving them out.

        Raises:
            InputError: an id outside the vocabulary.
        """
        pieces = []
        for token in tokens:
            data = self.token_bytes(token)
            if special and self._kinds[token] in _CONTROLS:
                data = self._texts[token].encode()
            pieces.append(data)
        text = b"".join(pieces).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._space != "none" else text

    def token_bytes(self, token: int) -> bytes:
        """Exactly the bytes that a token stands for; none for control and unused tokens.

        Raises:
            InputError: an id outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise InputError("no such token", got=token, allowed=f"0 to {self.vocab_size - 1}")
        text, kind = self._texts[token], self._kinds[token]
        if kind in _SILENT:
            return b""
        if kind == Kind.BYTE:
            return bytes([int(text[3:5], 16)])
        if not self._byte_level:
            return text.replace(_SPACE, " ").encode()
        if kind == Kind.USER:
            return text.encode()
        try:
            return bytes(map(_BYTE_OF.__getitem__, text))
        except KeyError:  # not spelt in byte characters
            return text.encode()

    def stream(self) -> Detokenizer:
        """A new incremental decoder."""
        return Detokenizer(self)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text that opens a sequence: bos if the model wants it, then the text."""
        opening = [self.bos] if self.add_bos and self.bos is not None else []
        return opening + self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> list[int]:
        """Token ids of a conversation, by the model's chat template.

        A base model has none. It gets the contents as one text, separated by blank lines, without
        their roles: whatever comes next continues them.

        Args:
            messages: each with "role" (system, user, assistant or tool) and "content".
            generate: end with the opening of the assistant's turn.

        Raises:
            InputError: not a conversation, or one that the template refuses.
            ModelError: the template is broken, hostile, or needs what this version lacks.
        """
        check_messages(messages)
        for message in messages:
            _check_text(message["content"])
        if self.has_chat_template:
            return self._parts(self._template.render(messages, generate=generate))
        ids = self.prompt(messages[0]["content"])
        for message in messages[1:]:
            ids += self.encode("\n\n", start=False) + self.encode(message["content"], start=False)
        return ids


class Detokenizer:
    """Tokens to text as they come, complete characters only. Control tokens are invisible.

    The pieces, joined, are the `token_bytes`, joined and decoded.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes. Raises InputError for an id that does not exist."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """U+FFFD if the tokens end inside a character, else nothing. Ready for a new text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(
            "the text is too long", got=len(text), allowed=f"at most {MAX_TEXT_CHARS} characters"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "the text is not valid Unicode",
            got=text[error.start : error.end],
            allowed="text without lone surrogates",
        ) from None


def _core(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Ordinary text to ids. Control and unused tokens are not in it, so no text can become one."""
    texts, kinds, unknown = vocabulary.texts, vocabulary.kinds, vocabulary.unknown
    words, spm = vocabulary.words, vocabulary.words is None
    if spm:
        texts = [text.replace(" ", _SPACE) for text in texts]
    kept = [i for i, kind in enumerate(kinds) if kind not in _SILENT or (spm and i == unknown)]
    ids = {texts[i]: i for i in kept}
    _check_complete(vocabulary, kept, ids)
    merges = vocabulary.merges
    if merges is None:
        merges = _merges_by_score(vocabulary, texts, [i for i in kept if kinds[i] in _MERGED])
    try:
        model = models.BPE(
            ids,
            merges,
            unk_token=texts[unknown] if spm and unknown is not None else None,
            fuse_unk=spm,
            byte_fallback=spm,
            ignore_merges=words is not None and words.whole,
        )
    except Exception as error:
        fault = f"its tokens and merges disagree: {error}"
        raise FileFormatError(vocabulary.path, fault) from error
    core = tokenizers.Tokenizer(model)
    users = [texts[i] for i in kept if kinds[i] == Kind.USER]
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in users])
    if words is None:
        core.normalizer = normalizers.Replace(" ", _SPACE)
    else:
        if words.nfc:
            core.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in words.patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([*splits, spell])
    return core


def _check_complete(vocabulary: Vocabulary, kept: Sequence[int], ids: Mapping[str, int]) -> None:
    """Raise unless tokens differ and SentencePiece has tokens to fall back to.

    Byte-level vocabularies may lack bytes: SmolLM2's has no 21 of them, among them six control
    characters. Their makers' tokenizers drop these from text, and so does this one.
    """
    if len(ids) < len(kept):
        raise FileFormatError(vocabulary.path, f"{len(kept) - len(ids)} tokens occur twice")
    missing = len({f"<0x{byte:02X}>" for byte in range(256)} - ids.keys())
    if vocabulary.words is None and vocabulary.unknown is None and missing:
        raise FileFormatError(vocabulary.path, f"{missing} of 256 bytes have no token")


def _merges_by_score(
    vocabulary: Vocabulary, texts: Sequence[str], tokens: Sequence[int]
) -> list[tuple[str, str]]:
    """SentencePiece's merges as a ranked list: all splits of a token into two tokens.

    The better the merged token's score, the earlier; for equal scores, the longer the left half,
    then the right. User-defined tokens count as 0, the best score.

    Sources: SentencePiece, `bpe_model.cc`; Hugging Face transformers, `convert_slow_tokenizer.py`,
    whose order this is.
    """
    pieces = [texts[i] for i in tokens]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    if lengths.sum() > _MAX_VOCAB_CHARS or lengths.max(initial=0) > _MAX_TOKEN_CHARS:
        raise FileFormatError(
            vocabulary.path,
            f"a token of {lengths.max()} characters (allowed: {_MAX_TOKEN_CHARS}), "
            f"all together {lengths.sum()} (allowed: {_MAX_VOCAB_CHARS})",
        )
    token, left, right = _splits(pieces, lengths)
    if len(token) > _MAX_MERGES:
        raise FileFormatError(vocabulary.path, f"more than {_MAX_MERGES} merges")
    users = np.array([vocabulary.kinds[i] == Kind.USER for i in tokens])
    scores = np.where(users, 0.0, np.array(vocabulary.scores)[tokens])
    order = np.lexsort((-lengths[right], -lengths[left], -scores[token]))
    objects = np.array(pieces, object)
    return list(zip(objects[left[order]].tolist(), objects[right[order]].tolist(), strict=True))


def _splits(texts: Sequence[str], lengths: Indices) -> tuple[Indices, Indices, Indices]:
    """All cuts of a text into two of the texts: the indices of the text, its left and its right.

    By rolling hashes modulo 2^64 of all prefixes and suffixes at once, in half the time of looking
    Gemma's 2.4 million of them up in a set. Should two share a hash (for a vocabulary like that
    the chance is some 1e-8), the merge model refuses the file.
    """
    chars = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.uint64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    powers = np.full(len(chars) + 1, 0x9E3779B97F4A7C15, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(chars * powers[:-1])])

    def digest(start: Indices, end: Indices) -> npt.NDArray[np.uint64]:
        digests: npt.NDArray[np.uint64] = (sums[end] - sums[start]) * powers[len(chars) - start]
        return digests

    whole = digest(starts, ends)
    order = np.argsort(whole)
    whole = whole[order]
    # The last text of those whose hashes begin with the same 22 bits: mostly the one looked for.
    slots = np.full(1 << 22, -1, np.int32)
    slots[whole >> _SLOT_SHIFT] = np.arange(len(whole))

    def find(start: Indices, end: Indices) -> Indices:
        wanted = digest(start, end)
        at = slots[wanted >> _SLOT_SHIFT]
        others = np.flatnonzero((at >= 0) & (whole[at] != wanted))
        at[others] = np.minimum(np.searchsorted(whole, wanted[others]), len(whole) - 1)
        return np.where((at >= 0) & (whole[at] == wanted), order[at], -1)

    token, cut = np.repeat(np.arange(len(texts)), lengths), np.arange(len(chars))
    inside = cut > starts[token]
    token, cut = token[inside], cut[inside]
    left = find(starts[token], cut)
    token, cut, left = (array[left >= 0] for array in (token, cut, left))
    right = find(cut, ends[token])
    return token[right >= 0], left[right >= 0], right[right >= 0]
