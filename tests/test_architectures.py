"""Families of models: the same description and weights from GGUF and from safetensors files.

Toys are written by independent packages (`tests/checkpoints.py`); headers of published models are
given as they are published.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file

from anabranch.backends.base import Quantized
from anabranch.backends.native import NativeBackend
from anabranch.errors import FileFormatError, InputError, UnsupportedError
from anabranch.models.architectures import ARCHITECTURES
from anabranch.models.architectures.fields import Fields
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec
from anabranch.models.decoder import Decoder
from anabranch.models.files import open_model
from tests.checkpoints import write_folder, write_gguf
from tests.toy import FAMILIES, ToyFile, toy


def sevens(family: str) -> ToyFile:
    """A toy of which a file can say everything: Gemma's scales and layers follow from its sizes."""
    if family != "gemma3":
        return toy(family)
    layers = tuple(LayerSpec(rope=1) if i == 5 else LayerSpec(window=20) for i in range(7))
    return toy(family, layers=layers, embedding_scale=8.0, attention_scale=0.25)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_and_its_weights(family: str, tmp_path: Path) -> None:
    model, path = sevens(family), tmp_path / "toy.gguf"
    expected = write_gguf(path, model)
    exact, packed = open_model(path, dtype="float32"), open_model(path)
    assert packed.name == "Toy"
    assert packed.config == replace(model.config, eps=packed.config.eps)
    assert packed.config.eps == np.float32(model.config.eps)
    for name, weight in expected.items():
        np.testing.assert_array_equal(exact.weight(name), weight)
        compare(packed.weight(name), weight, packed.tensors[name].format)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama3"])
def test_folder_and_its_weights(family: str, shards: int, tmp_path: Path) -> None:
    model, folder = sevens(family), tmp_path / "toy"
    expected = write_folder(folder, model, shards)
    exact, packed = open_model(folder, dtype="float32"), open_model(folder)
    assert packed.name == "toy"
    assert packed.config == model.config
    for name, weight in expected.items():
        np.testing.assert_allclose(exact.weight(name), weight, rtol=0, atol=1e-7)  # norm - 1 + 1
        compare(packed.weight(name), weight, packed.tensors[name].format)


def compare(weight: Any, expected: np.ndarray, stored: str) -> None:
    """Integers and vectors exactly as stored; a matrix rounded here, within half a step."""
    if isinstance(weight, Quantized) and stored in ("F32", "F16", "BF16"):
        step = np.repeat(weight.scale, weight.group, axis=1)
        assert (abs(weight.dequantize() - expected) <= 0.501 * step).all()
        return
    values = weight.dequantize() if isinstance(weight, Quantized) else weight
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-7)


def altered(values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a header with some values changed; None leaves one out."""
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def describe(path: Path, header: dict[str, Any]) -> ModelConfig:
    """What a `config.json` alone is read as."""
    family = next(f for f in ARCHITECTURES if header["model_type"] in f.hf)
    return family.describe(Fields(path, {**family.defaults, **header}))


LLAMA_31_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}

GEMMA_3_4B_TEXT: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}

QWEN2: dict[str, Any] = altered(
    LLAMA_31_8B, model_type="qwen2", rope_scaling=None, use_sliding_window=False
)


def test_llama3_frequencies(tmp_path: Path) -> None:
    """Against transformers' formula, written with its branches."""
    (rope,) = describe(tmp_path, LLAMA_31_8B).ropes
    assert rope.divisors is not None
    for j, divisor in enumerate(rope.divisors):
        frequency = 500000.0 ** (-2 * j / 128)
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            scaled = frequency
        elif wavelength > 8192 / 1:
            scaled = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            scaled = (1 - smooth) * frequency / 8 + smooth * frequency
        assert frequency / divisor == pytest.approx(scaled, rel=1e-12)
    assert rope.divisors[0] == 1
    assert rope.divisors[-1] == 8


def test_rope_parameters_of_transformers_5(tmp_path: Path) -> None:
    """`rope_parameters` says what `rope_theta` and `rope_scaling` used to say."""
    scaling = LLAMA_31_8B["rope_scaling"] | {"rope_theta": 500000.0}
    new = altered(LLAMA_31_8B, rope_theta=None, rope_scaling=None, rope_parameters=scaling)
    assert describe(tmp_path, new) == describe(tmp_path, LLAMA_31_8B)
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    gemma = altered(GEMMA_3_4B_TEXT, rope_scaling=None, rope_parameters=kinds)
    assert describe(tmp_path, gemma) == describe(tmp_path, GEMMA_3_4B_TEXT)


def test_gemma_3_4b(tmp_path: Path) -> None:
    config = describe(tmp_path, GEMMA_3_4B_TEXT)
    assert (config.heads, config.kv_heads, config.dim, config.vocab) == (8, 4, 256, 262208)
    assert config.ropes == (RopeSpec(10_000.0), RopeSpec(1_000_000.0, factor=8.0))
    sees_all = [i for i, layer in enumerate(config.layers) if layer == LayerSpec(rope=1)]
    assert sees_all == [5, 11, 17, 23, 29]
    assert config.layers[0] == LayerSpec(window=1024, rope=0)
    assert config.embedding_scale == 2560**0.5
    assert config.attention_scale == 1 / 16


def test_gemma_3_27b_divides_by_its_mean_head(tmp_path: Path) -> None:
    header = altered(
        GEMMA_3_4B_TEXT, num_hidden_layers=62, hidden_size=5376, num_attention_heads=32
    )
    assert describe(tmp_path, header).attention_scale == 168**-0.5
    stated = header | {"query_pre_attn_scalar": 256}
    assert describe(tmp_path, stated).attention_scale == 1 / 16


def test_windows(tmp_path: Path) -> None:
    def windows(header: dict[str, Any], **changes: Any) -> list[int]:
        config = describe(tmp_path, altered(header, num_hidden_layers=4, **changes))
        return [layer.window for layer in config.layers]

    assert windows(LLAMA_31_8B, model_type="mistral", sliding_window=4096) == [4096] * 4
    assert windows(LLAMA_31_8B, model_type="mistral") == [0] * 4
    assert windows(LLAMA_31_8B, model_type="mistral", sliding_window=131072) == [0] * 4
    assert windows(QWEN2, sliding_window=32768) == [0] * 4
    sliding = {"use_sliding_window": True, "sliding_window": 32768}
    assert windows(QWEN2, **sliding, max_window_layers=2) == [0, 0, 32768, 32768]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(QWEN2, **sliding, layer_types=kinds) == [32768, 0] * 2
    assert windows(GEMMA_3_4B_TEXT, sliding_window_pattern=2) == [1024, 0] * 2


def test_defaults_of_old_headers(tmp_path: Path) -> None:
    """Llama 1 and 2 name neither a rope base nor heads for keys."""
    header = altered(LLAMA_31_8B, rope_theta=None, rope_scaling=None, num_key_value_heads=None)
    config = describe(tmp_path, header)
    assert config.ropes == (RopeSpec(10_000.0),)
    assert (config.kv_heads, config.dim) == (32, 128)


@pytest.mark.parametrize(
    ("header", "changes", "message"),
    [
        (LLAMA_31_8B, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        (LLAMA_31_8B, {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        (LLAMA_31_8B, {"rope_scaling": {"type": "dynamic", "factor": 2}}, "dynamic"),
        (LLAMA_31_8B, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (LLAMA_31_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA_31_8B, {"quantization_config": {"quant_method": "awq"}}, "awq"),
        (GEMMA_3_4B_TEXT, {"use_bidirectional_attention": True}, "bidirectional"),
        (GEMMA_3_4B_TEXT, {"attn_logit_softcapping": 50.0}, "softcapping is 50.0"),
        (GEMMA_3_4B_TEXT, {"layer_types": ["chunked_attention"] * 34}, "chunked_attention"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(
    header: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        describe(tmp_path, header | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 4095}, "num_attention_heads is 32"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_scaling": []}, "rope_scaling is"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"rope_scaling": LLAMA_31_8B["rope_scaling"] | {"low_freq_factor": 9}}, "below high"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ],
)
def test_absurd_headers_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=message):
        describe(tmp_path, altered(LLAMA_31_8B, **changes))


@pytest.mark.parametrize("kinds", [["full_attention"], [1] * 34, "full_attention"])
def test_absurd_layer_types_are_refused(kinds: object, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="layer_types"):
        describe(tmp_path, GEMMA_3_4B_TEXT | {"layer_types": kinds})


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"llama__rope__scaling__type": "yarn"}, UnsupportedError, "yarn"),
        ({"llama__rope__dimension_count": 8}, UnsupportedError, "rope.dimension_count is 8"),
        ({"llama__attention__value_length": 8}, UnsupportedError, "value_length is 8"),
        ({"llama__attention__scale": 0.5}, UnsupportedError, "attention.scale is 0.5"),
        ({"llama__expert_count": 8}, UnsupportedError, "expert_count is 8"),
        ({"llama__attention__head_count": [4, 4]}, FileFormatError, "head_count is"),
        ({"llama__attention__head_count": 3}, FileFormatError, "head_count_kv is 2"),
        (
            {"llama__block_count": 3},
            FileFormatError,
            "9 of 29 tensors are missing: blk.2.attn_norm",
        ),
        ({"llama__block_count": 1}, UnsupportedError, "9 tensors are no part of llama.*blk.1"),
        ({"llama__embedding_length": 32}, FileFormatError, r"\[300, 64\], expected \[300, 32\]"),
    ],
)
def test_gguf_headers_that_do_not_fit(
    metadata: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "toy.gguf"
    write_gguf(path, toy("llama"), **metadata)
    with pytest.raises(error, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def write_architecture(path: Path, architecture: object) -> None:
    """A file with nothing but an architecture, of any type."""
    writer = gguf.GGUFWriter(path, "llama")
    value_type = gguf.GGUFValueType.get_type(architecture)
    writer.kv_data[0]["general.architecture"] = gguf.GGUFValue(architecture, value_type)
    close(writer)


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["phi3", 1.5, [1.5, 2.5], ["llama"]])
def test_unknown_families_of_gguf(architecture: object, tmp_path: Path) -> None:
    write_architecture(tmp_path / "a.gguf", architecture)
    with pytest.raises(UnsupportedError, match=r"architecture.*gemma3, llama, qwen2, qwen3"):
        open_model(tmp_path / "a.gguf")


def test_rope_scaling_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_gguf(path, toy("llama"), llama__rope__scaling__factor=4.0)
    assert open_model(path).config.ropes == (RopeSpec(10_000.0, factor=4.0),)
    write_gguf(path, toy("llama"), llama__rope__scale_linear=2.0)
    assert open_model(path).config.ropes == (RopeSpec(10_000.0, factor=2.0),)


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((300, 64), np.float32))
    close(writer)
    with pytest.raises(FileFormatError, match=r"2 tokens, but token_embd.weight has 300 rows"):
        open_model(path)


def edit(folder: Path, **changes: Any) -> None:
    """Replace tensors of a folder; None removes one."""
    tensors = altered(load_file(folder / "model.safetensors"), **changes)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lm_head.weight": None}, FileFormatError, "1 of 27 tensors are missing: lm_head.weight"),
        (
            {"model.norm.weight": np.ones(65, np.float32)},
            FileFormatError,
            r"model.norm.weight' has shape \[65\], expected \[64\]",
        ),
        (
            {"model.norm.weight": np.ones(64, np.int32)},
            UnsupportedError,
            "model.norm.weight' is stored as I32; allowed: F32, F16, BF16",
        ),
        (
            {"model.layers.0.mlp.down_proj.bias": np.ones(64, np.float32)},
            UnsupportedError,
            "1 tensors are no part of qwen2.*down_proj.bias",
        ),
    ],
)
def test_folders_whose_tensors_do_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, toy("qwen2"))
    edit(tmp_path, **changes)
    with pytest.raises(error, match=message):
        open_model(tmp_path)


def test_tied_embeddings(tmp_path: Path) -> None:
    """By what the header says; where it is silent, by what is there. A spare matrix is ignored."""
    write_folder(tmp_path, toy("qwen2"), tie_word_embeddings=None)
    assert not open_model(tmp_path).config.tied
    write_folder(tmp_path, toy("qwen2"), tie_word_embeddings=True)
    assert open_model(tmp_path).config.tied
    write_folder(tmp_path, toy("qwen3"), tie_word_embeddings=None)
    assert open_model(tmp_path).config.tied


def test_text_part_of_a_multimodal_folder(tmp_path: Path) -> None:
    """Gemma 3 from 4B up: names under a prefix, sizes under `text_config`, vision left aside."""
    model = sevens("gemma3")
    expected = write_folder(tmp_path, model)
    header = json.loads((tmp_path / "config.json").read_text())
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": altered(header, architectures=None),
    }
    (tmp_path / "config.json").write_text(json.dumps(outer))
    tensors = load_file(tmp_path / "model.safetensors")
    for prefix, vision in [("language_model.", ""), ("", "model.")]:
        renamed = {
            (prefix + n if prefix else n.replace("model.", "model.language_model.", 1)): t
            for n, t in tensors.items()
        }
        renamed[vision + "vision_tower.x.weight"] = np.ones((3, 3), np.float32)
        renamed[vision + "multi_modal_projector.y"] = np.ones(3, np.float32)
        save_file(renamed, tmp_path / "model.safetensors")
        file = open_model(tmp_path, dtype="float32")
        assert file.config == model.config
        np.testing.assert_array_equal(file.weight("layers.3.v"), expected["layers.3.v"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "'mamba'; allowed: gemma3, gemma3_text, llama"),
        ({"model_type": ["llama"]}, "architecture"),
        ({"model_type": None}, "architecture None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "allowed: LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "allowed: LlamaForCausalLM"),
    ],
)
def test_unknown_families_of_folders(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, toy("llama"), **changes)
    with pytest.raises(UnsupportedError, match=message):
        open_model(tmp_path)


def test_rotary_frequencies_in_a_folder_are_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, toy("llama"))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(tmp_path, **{name: np.ones(8, np.float32)})
    assert open_model(tmp_path).config == FAMILIES["llama"]


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model at this path.*missing"):
        open_model(tmp_path / "missing")
    with pytest.raises(InputError, match="no model at this path"):
        open_model(tmp_path / ("x" * 5000))
    with pytest.raises(InputError, match="has no config"):
        open_model(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"?")
    with pytest.raises(InputError, match="name one of the files in it: a"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"?")
    with pytest.raises(InputError, match="name the folder"):
        open_model(tmp_path / "model.safetensors")


def test_fingerprints_tell_weights_apart(tmp_path: Path) -> None:
    one, two, again = tmp_path / "1.gguf", tmp_path / "2.gguf", tmp_path / "3.gguf"
    write_gguf(one, toy("llama"))
    write_gguf(two, toy("llama", seed=1))
    again.write_bytes(one.read_bytes())
    prints = [open_model(path).fingerprint for path in (one, two, again)]
    assert prints[0] == prints[2] != prints[1]
    assert len(prints[0]) == 64
    write_folder(tmp_path / "f", toy("llama"))
    before = open_model(tmp_path / "f").fingerprint
    write_folder(tmp_path / "f", toy("llama"), rope_theta=20_000.0)
    assert open_model(tmp_path / "f").fingerprint != before


def test_packed_bytes_is_what_the_weights_take(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_gguf(path, toy("qwen2"))
    backend = NativeBackend(1)
    stored, dense = open_model(path, "stored"), open_model(path, "float32")
    taken = expanded = 0
    for name in stored.config.weight_shapes():
        weight = stored.weight(name)
        vector = isinstance(weight, np.ndarray)
        taken += weight.nbytes if vector else backend.pack([weight]).nbytes
        expanded += dense.weight(name).nbytes
    assert 0 <= taken - stored.packed_bytes < 0.01 * taken  # tiles are padded
    assert dense.packed_bytes == expanded


def test_weights_that_are_not_finite_name_their_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_gguf(path, toy("qwen2"))
    embed = open_model(path).tensors["embed"].data.tobytes()
    infinite = np.float16(np.inf).tobytes()
    path.write_bytes(path.read_bytes().replace(embed, infinite + embed[2:]))
    with pytest.raises(FileFormatError, match=r"toy\.gguf: embed: .* not finite"):
        Decoder(open_model(path, "stored"), NativeBackend(1))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux for its mappings")
def test_what_was_read_of_a_file_leaves_memory(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_gguf(path, toy("qwen2", vocab=10_000))  # several of the blocks that Linux reads ahead
    file = open_model(path, "float32")
    first = file.weight("embed")
    before = _resident_bytes(path)
    file.weight("final_norm")
    assert _resident_bytes(path) < before / 2
    np.testing.assert_array_equal(file.weight("embed"), first)
    del file
    gc.collect()
    stored = open_model(path, "stored").weight("embed")
    packed = NativeBackend(2).pack([stored])
    assert _resident_bytes(path) < before / 2
    out = np.empty_like(first)
    NativeBackend(1).embed(packed, np.arange(len(out), dtype=np.int32), 1.0, out)
    np.testing.assert_array_equal(out, first)


def _resident_bytes(path: Path) -> int:
    """What a file's mappings take of this process's memory."""
    mapping = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) << 10 for part in mapping)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"])
def test_real_models(name: str, model_path: Callable[[str], Path]) -> None:
    """The first head's rows of a sample of matrices equal the `gguf` package's numbers."""
    file = open_model(model_path(name))
    dim, shapes = file.config.dim, file.config.weight_shapes()
    matrices = [canonical for canonical, shape in shapes.items() if len(shape) == 2]
    for canonical in matrices[2::9]:
        weight, tensor = file.weight(canonical), file.tensors[canonical]
        assert isinstance(weight, Quantized)
        assert weight.shape == shapes[canonical]
        rows = tensor.data.reshape(tensor.shape[0], -1)[:dim]
        expected = dequantize(rows, gguf.GGMLQuantizationType[tensor.format])
        if file.interleaved and canonical.endswith((".q", ".k")):
            expected = expected.reshape(dim // 2, 2, -1).swapaxes(0, 1).reshape(dim, -1)
        np.testing.assert_array_equal(weight.dequantize()[:dim], expected)
