"""Golden logits from an independent implementation: Hugging Face transformers, float32, on the CPU.

    pip install torch transformers gguf
    python tests/golden/make_logits.py MODEL.gguf ...

writes `<stem>.npz` beside this script for each model. Nothing of Anabranch is imported: the `gguf`
package reads and dequantizes the weights, transformers tokenizes and computes. Made with torch
2.13.0, transformers 5.23.0 and gguf 0.19.0.

Each file holds, with the axis `samples` for the positions kept:
    tokens        all texts' token ids, one after the other, int32
    text_starts   [texts + 1] where each text begins in `tokens`, int32
    text, position  [samples] which position of which text, int32
    top_tokens, top_logits  [samples, 64] the largest logits after that position, largest first
    logsumexp, peak  [samples] of all logits, and the largest |logit|
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGUFReader, dequantize

SAMPLES, TOP = 8, 64

SHORT = [
    "Rivers rarely keep to one bed. Where the ground is flat and the load of sand is heavy, a "
    "channel silts up, overflows in spring and finds a second way through the meadows. For some "
    "miles the two run side by side, one shallow and wide, the other deep and quick, and then, "
    "often at the foot of a low hill, they meet again. Boatmen learn to ask which arm carries "
    "more water this year, because the answer changes.",
    "def merge(left, right):\n"
    '    """Merge two sorted lists into one."""\n'
    "    merged, i, j = [], 0, 0\n"
    "    while i < len(left) and j < len(right):\n"
    "        if left[i] <= right[j]:\n"
    "            merged.append(left[i])\n"
    "            i += 1\n"
    "        else:\n"
    "            merged.append(right[j])\n"
    "            j += 1\n"
    "    return merged + left[i:] + right[j:]\n",
    "Question: A baker sells rolls in bags of 6. On Monday she filled 14 bags and had 3 rolls "
    "left over. On Tuesday she baked twice as many rolls. How many full bags did she fill on "
    "Tuesday?\nAnswer: On Monday she baked 14 * 6 + 3 = 87 rolls. Twice as many is 174. "
    "174 / 6 = 29, so she filled 29 bags.\n",
]

# Longer than Gemma's sliding window of 512 tokens.
LONG = (
    "The lighthouse at Carrow Point was built twice. The first tower, finished in the autumn of "
    "1811, stood for less than four years. Its engineer, a cautious man who had worked on canals "
    "for most of his life, chose a soft local stone because it could be cut on the spot, and he "
    "set the foundations on what he took to be solid rock. It was in fact a shelf of hardened "
    "clay. Every winter the sea carried away a little more of the clay from below, and in "
    "February 1815, during a storm that also sank eleven fishing boats, the tower leaned, cracked "
    "along its northern side and fell. The keeper and his daughter had left it two hours earlier. "
    "He said later that he had heard the stones talking.\n\n"
    "The second tower took nine years. This time the commissioners sent for granite from a "
    "quarry sixty miles to the south, although it cost three times as much and had to be brought "
    "by sea in flat barges that could only land in calm weather. In some summers there were fewer "
    "than twenty such days. The masons lived on the point in wooden huts, grew potatoes behind a "
    "wall of driftwood, and cut the blocks so that each one locked into its neighbours on every "
    "side, like the pieces of a puzzle. No mortar was used below the high-water line. When the "
    "work was slow they carved their names on faces that would never again see the light.\n\n"
    "The lamp was lit for the first time on the third of November 1824. It burned whale oil, then "
    "rapeseed oil, then paraffin, and from 1926 electricity, which came over the hills on poles "
    "and failed so often that the paraffin lamp was kept filled for another thirty years. The "
    "lens, made in Paris, floated on a bath of mercury and turned once every ninety seconds. "
    "A child could move it with one finger. The keepers wound the clockwork every four hours, "
    "day and night, and wrote the time, the wind and the state of the sea in a ledger. There are "
    "two hundred and six of these ledgers, and they are now in the county archive, where "
    "historians of the climate read them with great interest, because nobody else on that coast "
    "wrote down the weather six times a day for more than a century.\n\n"
    "Today the light is automatic. A technician visits twice a year, checks the batteries, cleans "
    "the salt from the panes and leaves again before the tide turns. The keepers' house has been "
    "let to visitors, who climb the one hundred and forty steps, look out over the grey water "
    "towards the islands, and ask their guide the same question that the commissioners once asked "
    "the engineer: how long will it stand? The guide, who is a descendant of the first keeper, "
    "has a short answer. As long, she says, as somebody goes on listening to the stones."
)


def main(paths: list[str]) -> None:
    torch.set_grad_enabled(False)
    for path in map(Path, paths):
        model = load(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        texts = [tokenizer(text)["input_ids"] for text in [*SHORT, LONG]]
        arrays = golden(model, texts)
        np.savez_compressed(Path(__file__).parent / f"{path.stem}.npz", **arrays)
        nats = [float(model(torch.tensor([t]), labels=torch.tensor([t])).loss) for t in texts]
        for text, loss in zip(texts, nats, strict=True):
            print(f"{path.stem}: {len(text)} tokens, {loss:.3f} nats each", flush=True)


def golden(model: torch.nn.Module, texts: list[list[int]]) -> dict[str, np.ndarray]:
    """The arrays of one file; positions are spread evenly and include the last."""
    columns: dict[str, list[np.ndarray]] = {}
    for i, text in enumerate(texts):
        at = np.linspace(0, len(text) - 1, SAMPLES + 1).round().astype(np.int32)[1:]
        logits = model(torch.tensor([text]), logits_to_keep=torch.tensor(at)).logits[0]
        top = logits.topk(TOP)
        for name, column in {
            "text": torch.full((SAMPLES,), i, dtype=torch.int32),
            "position": torch.tensor(at),
            "top_tokens": top.indices.int(),
            "top_logits": top.values,
            "logsumexp": logits.logsumexp(1),
            "peak": logits.abs().amax(1),
        }.items():
            columns.setdefault(name, []).append(column.numpy())
    return {
        "tokens": np.concatenate(texts).astype(np.int32),
        "text_starts": np.cumsum([0, *map(len, texts)]).astype(np.int32),
    } | {name: np.concatenate(column) for name, column in columns.items()}


def load(path: Path) -> torch.nn.Module:
    """A transformers model with this file's weights."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    config = config_of(architecture, fields, {t.name: t.shape for t in reader.tensors})
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if architecture == "llama" and (kind := re.search(r"attn_(q|k)\.weight", tensor.name)):
            q, kv = config.num_attention_heads, config.num_key_value_heads
            weight = uninterleave(weight, q if kind[1] == "q" else kv)
        if architecture == "gemma3" and tensor.name.endswith("norm.weight"):
            weight -= 1  # transformers multiplies by 1 + weight
        state[hf_name(architecture, tensor.name)] = weight
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    model.load_state_dict(state)
    return model.eval()


def config_of(
    architecture: str, fields: dict[str, object], shapes: dict[str, np.ndarray]
) -> transformers.PretrainedConfig:
    def of(name: str) -> object:
        return fields[f"{architecture}.{name}"]

    heads, hidden = of("attention.head_count"), of("embedding_length")
    common = {
        "vocab_size": int(shapes["token_embd.weight"][1]),
        "hidden_size": hidden,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": fields.get(f"{architecture}.attention.key_length", hidden // heads),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    rope = {"rope_type": "default", "rope_theta": of("rope.freq_base")}
    if architecture == "llama":
        return transformers.LlamaConfig(**common, rope_parameters=rope)
    if architecture == "qwen2":
        return transformers.Qwen2Config(**common, rope_parameters=rope)
    if architecture == "gemma3":
        every = 6  # five sliding layers, then a global one
        return transformers.Gemma3TextConfig(
            **common,
            rope_parameters={
                "full_attention": rope,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            layer_types=[
                "sliding_attention" if (i + 1) % every else "full_attention"
                for i in range(of("block_count"))
            ],
            sliding_window=of("attention.sliding_window"),
            query_pre_attn_scalar=of("attention.key_length"),
        )
    raise SystemExit(f"no recipe for architecture {architecture}")


def uninterleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Llama files keep rotary pairs side by side; transformers pairs j with j + dim/2."""
    outputs, inputs = weight.shape
    pairs = weight.reshape(heads, outputs // heads // 2, 2, inputs)
    return pairs.transpose(1, 2).reshape(outputs, inputs)


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(architecture: str, name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not (block := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)):
        return f"{NAMES[stem]}.{kind}"
    part = NAMES[block[2]]
    if architecture == "gemma3" and block[2] == "ffn_norm":
        part = "pre_feedforward_layernorm"
    return f"model.layers.{block[1]}.{part}.{kind}"


if __name__ == "__main__":
    main(sys.argv[1:])
