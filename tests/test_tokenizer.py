"""Tokenizers: ids as the originals give them, text back exactly, hostile vocabularies refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import AnabranchError, FileFormatError, InputError, UnsupportedError
from anabranch.models import tokenizer as module
from anabranch.models.files import open_model
from anabranch.models.tokenizer import MAX_TEXT_CHARS, Tokenizer
from anabranch.models.vocabulary import gguf_vocabulary

HERE = Path("somewhere.gguf")
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
Metadata = dict[str, Any]

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m")

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "r l", "Ġwo rl", "Ġworl d", "1 2", "Ã ©"]
"""`hello`, ` world`, `12`, `é` in byte characters."""


def byte_level(**changes: object) -> Metadata:
    """A byte-level vocabulary as a GGUF header has it; ids 0 to 255 are the bytes in some order."""
    words = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*module._BYTE_OF, *words, "<s>", "<|im_end|>", "<|im|>", "<tool>", "[PAD]"]
    kinds = [NORMAL] * (256 + len(words)) + [CONTROL, CONTROL, CONTROL, USER, UNUSED]
    values = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": np.array(kinds, np.int32),
        "merges": list(MERGES),
        "bos_token_id": tokens.index("<s>"),
        "eos_token_id": tokens.index("<|im_end|>"),
    }
    return _header(values | changes)


def sentencepiece(
    pieces: Mapping[str, float], users: tuple[str, ...] = (), **more: object
) -> Metadata:
    """A SentencePiece vocabulary as a GGUF header has it; ids 3 to 258 are the bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *users]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": np.array(kinds + [USER] * len(users), np.int32),
        "scores": np.array([0.0] * 259 + [*pieces.values()] + [-1000.0] * len(users), np.float32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": False,
    }
    return _header(values | more)


def _header(values: Mapping[str, object]) -> Metadata:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@cache
def byte_level_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(byte_level(), HERE)


LETTERS = {"▁": -90.0, "a": -91.0, "b": -92.0, "c": -93.0, "é": -94.0}
MERGED = {"ab": -1.0, "▁a": -2.0, "abc": -3.0, "bc": -4.0, "▁ab": -5.0, "aa": -6.0, "cab": -7.0}


def texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode([i], special=True) for i in ids]


# Byte-level BPE


def test_words_are_cut_then_merged() -> None:
    tokenizer = byte_level_tokenizer()
    assert texts(tokenizer, tokenizer.encode("hello world1212 é")) == [
        *("hello", " world", "1", "2", "1", "2", " ", "é")
    ]


def test_each_way_to_cut_words_differs_where_it_should() -> None:
    def cut(pre: str) -> list[str]:
        tokenizer = Tokenizer.from_gguf(byte_level(pre=pre), HERE)
        return texts(tokenizer, tokenizer.encode("12 12"))

    assert cut("gpt-2") == ["12", " ", "12"]
    assert cut("llama-bpe") == ["12", " ", "12"]
    assert cut("smollm") == cut("qwen2") == ["1", "2", " ", "1", "2"]


def test_text_is_composed_first_where_the_original_does_it() -> None:
    composed, decomposed = "é", unicodedata.normalize("NFD", "é")
    qwen = byte_level_tokenizer()
    assert qwen.encode(decomposed) == qwen.encode(composed)
    gpt2 = Tokenizer.from_gguf(byte_level(pre="gpt-2"), HERE)
    assert gpt2.decode(gpt2.encode(decomposed)) == decomposed


@given(st.text(max_size=60))
def test_text_comes_back_exactly(text: str) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre="gpt-2"), HERE)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(st.text(max_size=60))
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert ("�" in "".join(pieces)) == ("�" in text)


@given(st.lists(st.integers(0, 255), max_size=20))
def test_invalid_bytes_become_replacement_characters_streamed_or_not(ids: list[int]) -> None:
    tokenizer = byte_level_tokenizer()
    stream = tokenizer.stream()
    joined = "".join([*map(stream.push, ids), stream.flush()])
    assert joined == tokenizer.decode(ids)
    assert joined == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


def test_half_a_character_is_held_back() -> None:
    tokenizer = byte_level_tokenizer()
    first, second, third = tokenizer.encode("€")
    stream = tokenizer.stream()
    assert [stream.push(first), stream.push(second), stream.push(third)] == ["", "", "€"]
    assert stream.push(first) == ""
    assert stream.flush() == "�"
    assert [stream.push(i) for i in tokenizer.encode("hello")] == ["hello"]


# Control tokens, user-defined tokens, ends


FRAGMENTS = st.sampled_from(
    ["<|im_end|>", "<|im", "_end|>", "|>", "<", "<s>", "s>", "[PAD]", " ", "a"]
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join))
def test_text_never_becomes_a_control_or_unused_token(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode(text)
    assert all(tokenizer.token_bytes(i) for i in ids)
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_found_on_request_the_longest_first() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode("<<|im_end|>>é<s><|im|><|im_en", special=True)
    parts = texts(tokenizer, ids)
    assert parts[:4] == ["<", "<|im_end|>", ">", "é"]
    assert parts[4:6] == ["<s>", "<|im|>"]
    assert "".join(parts) == "<<|im_end|>>é<s><|im|><|im_en"
    assert tokenizer.decode(ids) == "<>é<|im_en"


def test_user_defined_tokens_are_text_and_found_in_text() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode("hello<tool>hello")
    assert texts(tokenizer, ids) == ["hello", "<tool>", "hello"]
    assert tokenizer.decode(ids) == "hello<tool>hello"


def test_ends_are_those_of_the_file_and_those_known_by_name() -> None:
    metadata = byte_level()
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("<|im|>")] = "<|endoftext|>"
    tokens[tokens.index("<tool>")] = "<end_of_turn>"
    tokenizer = Tokenizer.from_gguf(metadata, HERE)
    names = {"<|im_end|>", "<|endoftext|>", "<end_of_turn>"}
    assert tokenizer.ends == {tokens.index(name) for name in names}
    assert not tokenizer.ends & set(tokenizer.encode("<end_of_turn>"))


def test_ordinary_text_that_looks_like_an_end_is_none() -> None:
    metadata = byte_level(merges=[*MERGES, "< eos", "<eos >"])
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens += ["eos", "<eos", "<eos>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
    assert Tokenizer.from_gguf(metadata, HERE).ends == {tokens.index("<|im_end|>")}


def test_prompts_start_with_bos_if_the_file_or_the_family_says_so() -> None:
    def opening(**changes: object) -> list[int]:
        tokenizer = Tokenizer.from_gguf(byte_level(**changes), HERE)
        return tokenizer.prompt("hello")[: -len(tokenizer.encode("hello"))]

    bos = byte_level()["tokenizer.ggml.bos_token_id"]
    assert opening() == []
    assert opening(pre="llama-bpe") == [bos]
    assert opening(add_bos_token=True) == [bos]
    assert opening(pre="llama-bpe", add_bos_token=False) == []
    assert opening(add_bos_token=True, bos_token_id=None) == []


# SentencePiece


def _merge_by_score(text: str, pieces: Mapping[str, float]) -> list[str]:
    """The definition: merge the adjacent pair of the best score, the leftmost of equals."""
    parts = list(text.replace(" ", "▁"))
    while True:
        best = [
            (-pieces[left + right], -len(left), i)
            for i, (left, right) in enumerate(pairwise(parts))
            if left + right in pieces
        ]
        if not best:
            return parts
        i = min(best)[2]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@given(st.text("abc ", max_size=30))
def test_sentencepiece_merges_the_best_score_first(text: str) -> None:
    pieces = LETTERS | MERGED
    tokenizer = Tokenizer.from_gguf(sentencepiece(pieces), HERE)
    got = [tokenizer._texts[i] for i in tokenizer.encode(text)]
    assert got == _merge_by_score(text, pieces)


@given(st.text(max_size=30).filter(lambda text: "▁" not in text))
def test_sentencepiece_text_comes_back_exactly(text: str) -> None:
    for prefix in (False, True):
        metadata = sentencepiece(LETTERS | MERGED, add_space_prefix=prefix)
        tokenizer = Tokenizer.from_gguf(metadata, HERE)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        put_in_front = " " if prefix and text else ""
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == put_in_front + text


def test_unknown_characters_fall_back_to_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(LETTERS), HERE)
    assert [tokenizer._texts[i] for i in tokenizer.encode("aß")] == ["a", "<0xC3>", "<0x9F>"]
    assert "".join(map(tokenizer.stream().push, tokenizer.encode("aß"))) == "aß"


def test_a_space_in_front_is_for_the_start_of_a_text() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(LETTERS, add_space_prefix=None), HERE)
    assert tokenizer.encode("a") == tokenizer.encode(" a", start=False)
    assert len(tokenizer.encode("a", start=False)) == 1
    assert tokenizer.encode("") == []
    between = tokenizer.encode("a<s>a", special=True)
    assert between == [*tokenizer.encode("a"), 1, *tokenizer.encode("a")]


def test_user_defined_runs_of_spaces_are_one_token() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(LETTERS, ("  ", "   ", "\n")), HERE)
    ids = tokenizer.encode("a   a\n  a")
    assert texts(tokenizer, ids) == ["a", "   ", "a", "\n", "  ", "a"]


@given(st.sets(st.text("ab▁", min_size=1, max_size=5), min_size=1, max_size=12).map(sorted))
def test_all_splits_of_all_tokens_are_found(pieces: list[str]) -> None:
    lengths = np.array([len(piece) for piece in pieces])
    found = {tuple(map(int, split)) for split in zip(*module._splits(pieces, lengths), strict=True)}
    assert found == {
        (i, pieces.index(piece[:cut]), pieces.index(piece[cut:]))
        for i, piece in enumerate(pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    }


# Bad input


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        byte_level_tokenizer().encode("a\ud800b")


def test_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match=f"{MAX_TEXT_CHARS} characters"):
        byte_level_tokenizer().encode("a" * (MAX_TEXT_CHARS + 1))


@pytest.mark.parametrize("token", [-1, 272, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.vocab_size == 272
    for use in (tokenizer.token_bytes, tokenizer.stream().push, lambda i: tokenizer.decode([i])):
        with pytest.raises(InputError, match="0 to 271"):
            use(token)


HOSTILE: dict[str, tuple[Metadata, str]] = {
    "no model": (byte_level(model=None), "this kind of tokenizer"),
    "unknown model": (byte_level(model="wordpiece"), "gpt2 .*llama"),
    "model of a wrong type": (byte_level(model=7), "model is not text"),
    "unknown words": (byte_level(pre="klingon"), "llama-bpe.*qwen2.*smollm"),
    "no tokens": (byte_level(tokens=None), "tokens is missing"),
    "empty tokens": (_header({"model": "gpt2", "tokens": [], "merges": []}), "0 tokens"),
    "tokens of a wrong type": (byte_level(tokens=np.zeros(3)), "not a list of texts"),
    "tokens not all text": (byte_level(tokens=["a", 1]), "not a list of texts"),
    "token not Unicode": (byte_level(tokens=["\udc80"] * 272), "Unicode"),
    "tokens twice": (byte_level(tokens=["!"] * 272), "occur twice"),
    "types too few": (byte_level(token_type=[1, 2]), "list of 272 numbers"),
    "types unknown": (byte_level(token_type=[9] * 272), "unknown type 9"),
    "types not numbers": (byte_level(token_type=["a"] * 272), "list of 272 numbers"),
    "types ragged": (byte_level(token_type=[[1], [1, 2]]), "list of 272 numbers"),
    "byte token misspelt": (byte_level(token_type=[6] * 272), "byte token 0"),
    "no merges": (byte_level(merges=None), "merges is missing"),
    "merge of one": (byte_level(merges=["he"]), "not two tokens"),
    "merge of unknown tokens": (byte_level(merges=["h xyz"]), "merges disagree"),
    "merge to an unknown token": (byte_level(merges=["z z"]), "merges disagree"),
    "bos out of range": (byte_level(bos_token_id=272), "is 272, of 272"),
    "eos negative": (byte_level(eos_token_id=-1), "is -1, of 272"),
    "eos of a wrong type": (byte_level(eos_token_id="2"), "is not a number"),
    "flag of a wrong type": (byte_level(add_bos_token="yes"), "neither true nor false"),
    "no scores": (sentencepiece(LETTERS, scores=None), "scores is missing"),
    "scores too few": (sentencepiece(LETTERS, scores=[1.0]), "list of 264 numbers"),
    "scores not finite": (sentencepiece(LETTERS, scores=[float("nan")] * 264), "list of 264"),
    "no bytes": (
        _header({"model": "llama", "tokens": ["a"], "token_type": [1], "scores": [0.0]}),
        "256 of 256 bytes",
    ),
    "long token": (sentencepiece({"a" * 600: 0.0}), "600 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_vocabularies_are_refused_with_their_fault(case: str) -> None:
    metadata, fault = HOSTILE[case]
    with pytest.raises((FileFormatError, UnsupportedError), match=fault):
        Tokenizer.from_gguf(metadata, HERE)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 40), st.floats(), st.text(max_size=4),
    st.lists(st.text(max_size=3), max_size=4), st.lists(st.integers(-1, 9), max_size=4),
)  # fmt: skip


@given(st.data(), st.booleans())
@settings(max_examples=80)
def test_no_vocabulary_does_worse_than_a_typed_error(data: st.DataObject, spm: bool) -> None:
    metadata = sentencepiece(LETTERS | MERGED) if spm else byte_level()
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        old = metadata[key]
        if isinstance(old, list) and old and data.draw(st.booleans()):
            old[data.draw(st.integers(0, len(old) - 1))] = data.draw(st.text(max_size=4))
        else:
            metadata[key] = data.draw(VALUES)
    try:
        tokenizer = Tokenizer.from_gguf(metadata, HERE)
        tokens = [*tokenizer.encode("hello abc <s> é\n", special=True), *tokenizer.prompt("hello")]
        text = tokenizer.decode(tokens)
    except AnabranchError:
        return
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    text.encode()


# Folders


def folder(path: Path, **changes: object) -> Path:
    """The byte-level vocabulary as Hugging Face's files have it."""
    values = {key.rpartition(".")[2]: value for key, value in byte_level().items()}
    kinds = values["token_type"].tolist()
    added = [
        {"id": i, "content": text, "special": kinds[i] == CONTROL}
        for i, text in enumerate(values["tokens"])
        if kinds[i] in (CONTROL, USER)
    ]
    words = gguf_vocabulary(byte_level(), path).words
    assert words is not None
    split = {"type": "Split", "pattern": {"Regex": words.patterns[0]}, "behavior": "Isolated"}
    data: dict[str, Any] = {
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(values["tokens"]) if kinds[i] == NORMAL},
            "merges": [merge.split() for merge in values["merges"]],
        },
    }
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": "{{ 1 }}",
    }
    files: dict[str, Any] = {"tokenizer.json": data | changes, "tokenizer_config.json": config}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(folder(tmp_path_factory.mktemp("folder")))


@given(text=st.lists(FRAGMENTS | st.text(max_size=8), max_size=5).map("".join))
def test_a_folder_and_a_header_make_the_same_tokenizer(from_folder: Tokenizer, text: str) -> None:
    ours, theirs = byte_level_tokenizer(), from_folder
    assert ours.encode(text) == theirs.encode(text)
    ids = ours.encode(text, special=True)
    assert theirs.encode(text, special=True) == ids
    assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos, ours.ends) == (theirs.bos, theirs.ends)


def test_a_folder_is_padded_to_the_embedding_and_its_other_files_are_read(tmp_path: Path) -> None:
    folder(tmp_path)
    assert not Tokenizer.from_folder(tmp_path).add_bos
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 300}}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 999]}')
    single = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    folder(tmp_path, post_processor={"type": "TemplateProcessing", "single": single})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.token_bytes(299)) == (300, b"")
    assert 5 in tokenizer.ends
    assert tokenizer.add_bos


def _sentencepiece_folder(path: Path, *, first: bool) -> Path:
    metadata = sentencepiece(LETTERS | {"▁a": -1.0})
    tokens = metadata["tokenizer.ggml.tokens"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    data = {
        "added_tokens": [{"id": i, "content": tokens[i], "special": True} for i in range(3)],
        "normalizer": None if first else prepend,
        "pre_tokenizer": metaspace if first else None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": ["▁ a"],
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def test_a_sentencepiece_folder_puts_spaces_where_it_says(tmp_path: Path) -> None:
    every = Tokenizer.from_folder(_sentencepiece_folder(tmp_path, first=False))
    assert texts(every, every.encode("a<s>a", special=True)) == ["a", "<s>", "a"]
    assert every.encode("a<s>a", special=True)[0] == every.encode("a<s>a", special=True)[2]
    assert every.token_bytes(every.encode("a")[0]) == b" a"
    first = Tokenizer.from_folder(_sentencepiece_folder(tmp_path, first=True))
    pieces = [first.token_bytes(i) for i in first.encode("a<s>a", special=True)]
    assert pieces == [b" a", b"", b"a"]
    assert first.encode(" a") == first.encode("a")
    assert first.decode(first.encode("aß")) == "aß"


def _bpe(**changes: object) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []} | changes}


SPLIT = {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated"}
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 9999}
REFUSED: dict[str, tuple[dict[str, Any], type[AnabranchError]]] = {
    "a regular expression of its own": ({"pre_tokenizer": SPLIT}, UnsupportedError),
    "a normalizer of its own": ({"normalizer": BOMB}, UnsupportedError),
    "a unigram model": (_bpe(type="Unigram"), UnsupportedError),
    "dropout": (_bpe(dropout=0.1), UnsupportedError),
    "no model": ({"model": None}, FileFormatError),
    "no vocabulary": (_bpe(vocab=None), FileFormatError),
    "no merges": (_bpe(merges=None), FileFormatError),
    "a merge of three": (_bpe(merges=[["a", "b", "c"]]), FileFormatError),
    "a huge id": (_bpe(vocab={"a": 1 << 40}), FileFormatError),
    "an id that is no number": (_bpe(vocab={"a": "b"}), FileFormatError),
    "added tokens that are none": ({"added_tokens": [{"id": 1}]}, FileFormatError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_are_refused_with_their_fault(tmp_path: Path, case: str) -> None:
    changes, error = REFUSED[case]
    with pytest.raises(error):
        Tokenizer.from_folder(folder(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


# Real models


@cache
def _real(path: Path) -> Tokenizer:
    return Tokenizer.of(open_model(path))


@pytest.fixture(params=MODELS)
def real(request: pytest.FixtureRequest, model_path: Callable[[str], Path]) -> Tokenizer:
    return _real(model_path(request.param))


@pytest.mark.model
@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_the_originals(name: str, model_path: Callable[[str], Path]) -> None:
    tokenizer = _real(model_path(name))
    cases = json.loads((GOLDEN / f"tokenizer_{name}.json").read_text())["cases"]
    assert len(cases) > 200
    for text, plain, *special in cases:
        assert tokenizer.encode(text) == plain, text
        assert tokenizer.encode(text, special=True) == (special or [plain])[0], text


@pytest.mark.model
@pytest.mark.parametrize("name", MODELS)
def test_real_text_comes_back_exactly(name: str, model_path: Callable[[str], Path]) -> None:
    tokenizer = _real(model_path(name))
    cases = json.loads((GOLDEN / f"tokenizer_{name}.json").read_text())["cases"]
    lost = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D} if name == "smollm2-135m" else set()
    for text, ids, *_ in cases:
        if name.startswith("qwen"):
            text = unicodedata.normalize("NFC", text)
        if name.startswith("gemma"):
            text = text.replace("▁", " ")
        text = bytes(byte for byte in text.encode() if byte not in lost).decode()
        stream = tokenizer.stream()
        assert tokenizer.decode(ids) == text
        assert "".join([*map(stream.push, ids), stream.flush()]) == text


@pytest.mark.model
def test_real_vocabularies_know_their_ends(real: Tokenizer) -> None:
    ends = {real.decode([end], special=True) for end in real.ends}
    assert ends in ({"<|endoftext|>", "<|im_end|>"}, {"<eos>", "<end_of_turn>"})
    assert real.prompt("x")[:-1] == ([real.bos] if "<eos>" in ends else [])
    assert all(real.token_bytes(end) == b"" for end in real.ends)
