"""Golden token ids: texts that are hard on tokenizers, with the ids that independent ones give.

Needs packages that this project does not depend on (in an environment of their own: `gguf`,
`tokenizers`, and `cyllama`, which binds llama.cpp). Run in this folder:

    python make_tokenizer_golden.py smollm2-135m MODEL.gguf
    python make_tokenizer_golden.py qwen2.5-coder-0.5b MODEL.gguf --original tokenizer.json
    python make_tokenizer_golden.py gemma3-270m MODEL.gguf --original tokenizer.json

With `--original`, the oracle is Hugging Face tokenizers on the publisher's own `tokenizer.json`
(Qwen3's serves for Qwen2.5: same vocabulary and merges, four added tokens more; Gemma 3's for all
its sizes). Tokens count as control tokens where the GGUF file says so, and tokens that it lacks are
left out. Without it, the oracle is llama.cpp.

Writes `tokenizer_<name>.json`: cases of a text, its ids, and, if they differ, its ids with control
tokens recognised.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

Encode = Callable[[str, bool], list[int]]
CONTROL = 3

HAND = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\r",
    "a",
    "Hello",
    " Hello",
    "Hello world",
    "Hello  world",
    "Hello, world! ",
    "The quick brown fox jumps over the lazy dog.",
    "I'm you're he'll we've they'd it's don't",
    "I'M YOU'RE HE'LL WE'VE THEY'D IT'S",
    "'s 't 're 've 'm 'll 'd",
    "x'ſ y'S",
    "0",
    "12",
    "123",
    "1234567890",
    "3.14159",
    "1,000,000.00",
    "0xDEADBEEF",
    "１２３",
    "٣٤٥",
    "²³¹¼½Ⅷ",
    "a1b2c3",
    "v2.10.3-rc1",
    "def f(x):\n    return x ** 2  # square\n",
    "if (a&&b||!c) { return ~d ^ e; }",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n\t}\n",
    '<html><body class="x">&nbsp;</body></html>',
    "SELECT * FROM t WHERE a='b' -- c",
    '{"a": [1, 2, {"b": null}]}',
    "\\n\\t\\\\",
    "https://example.org/a/b?c=d&e=%20f#g",
    "user.name+tag@example.co.uk",
    "C:\\Users\\me\\file.txt",
    "#!/bin/sh\nset -eu\n",
    'print(f"{x!r:>{w}}")',
    "a->b::c<d>&&e",
    "____init____",
    "camelCaseWordsAndHTTPServer",
    "snake_case_words",
    "$x = \\frac{a}{b}$",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界！",
    "こんにちは世界",
    "안녕하세요 세계",
    "Xin chào thế giới",
    "Grüße aus München, ẞ ß",
    "naïve café déjà vu",
    "cafe\u0301 A\u030a \u1e9b\u0323",
    "가각 \u1100\u1161\u11a8",
    "ﬁ ﬂ Å Ω",
    "İstanbul ıI",
    "ქართული",
    "አማርኛ",
    "ខ្មែរ",
    "မြန်မာ",
    "ᏣᎳᎩ",
    "𐍈𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚",
    "𠜎𠜱𠝹",
    "नि\u200dक्\u200cष",
    "zero\u200bwidth\u2060join\ufeffbom",
    "rtl \u202eabc\u202c ltr",
    "a\u0300\u0301\u0302\u0303b",
    "😀",
    "😀😃😄",
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇩🇪🇫🇷",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "❤️‍🔥 ok",
    "1️⃣2️⃣",
    "emoji😀in🎉words",
    "☃ ✓ ✗ → ⇒ ∀∃∅",
    "♥\ufe0e ♥\ufe0f",
    "\x00",
    "\x00\x01\x02\x1f\x7f",
    "a\x00b",
    "bell\x07 esc\x1b[31mred\x1b[0m",
    "\x80\x85\x9f",
    "\u2028line\u2029par",
    "nbsp\u00a0here\u2003em\u3000ideo",
    "\ufffd",
    "\ufffe\uffff",
    "\U0010ffff",
    "\ue000\uf8ff",
    "\x0b\x0c vt ff",
    " leading",
    "trailing ",
    "  two  spaces  ",
    "a" + " " * 7 + "b",
    "a" + " " * 16 + "b",
    "a" + " " * 31 + "b",
    "a" + " " * 32 + "b",
    " " * 5,
    " " * 31,
    " " * 33,
    " " * 64,
    "\t\t\t\tx",
    "\t \t \t",
    "x\n\n\ny",
    "x\n" * 3,
    "\n" * 31,
    "\n" * 33,
    "\n" * 64,
    "\t" * 33,
    " \n \n ",
    "  \n\n  x",
    "\r\n\r\n\r\n",
    "a \n b",
    "a\n b",
    "a\t b",
    "a \t\n\r b ",
    "!  ?",
    "word\u3000\u3000word",
    "▁",
    "▁▁",
    "a▁b",
    " ▁ ",
    "x ▁▁ y",
    "\n▁\n",
    "<0x0A>",
    "<0xFF>",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "=" * 10,
    "=" * 80,
    "-" * 33,
    "*" * 7,
    "#" * 12,
    "." * 50,
    "ab" * 20,
    "/" * 9,
    "_" * 17,
    "!?" * 9,
    "。" * 5,
    "0" * 40,
    "ha" * 9,
    "é" * 9,
    "😀" * 9,
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>",
    "<|im_end|",
    "<bos>x<eos>",
    "<start_of_turn>user\nhi<end_of_turn>",
    "</s><s>",
    "[INST] x [/INST]",
    "<unk><pad>",
    "<tool_call>{}</tool_call>",
    "<think>hm</think>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<repo_name>x<file_sep>",
    "<unused0><unused99><mask>",
    "[multimodal]",
    "<table><tr><td>1</td></tr></table>",
    "<h1>T</h1><p>x<br></p>",
    "<strong>b</strong><em>i</em>",
    "<|im_start|><|im_start|>",
    "<<|im_end|>>",
    "[PAD151665]",
    "<code>\n<pre>  x</pre>",
    "<blockquote>q</blockquote><ul><li>a</li></ul>",
    "Hello 123 world, it's 2024-01-31T23:59:59Z; pi≈3.14159, 北京 100% ✓\n\tdone()  ",
    "Question: Ann has 3 apples and buys 12 more; how many?\nAnswer:",
    "Lorem ipsum dolor sit amet,\tconsectetur\n\nadipiscing   elit.",
]
ALPHABETS = [
    " \n\t\r",
    "aábc 'sStTdD",
    "019 ,.٣",
    "{}()[]<>=+-*/&|!?;: \n",
    "дЯж чΩλ",
    "漢字かなカナ。、 ",
    "😀👩\u200d👧🏽❤\ufe0f🇩🇪 ",
    "e\u0301o\u0308\u0327n\u0303 ",
    "\x00\x07\x1b\x7f\x85\u00a0\u2028\u200b\ufeff a",
    "अनम\u093f\u094d\u200d ",
    "<|im_startend>/ ▁",
]


def corpus(count: int = 60, seed: int = 7) -> list[str]:
    """The texts above, then random ones."""
    rng = random.Random(seed)
    texts = list(HAND)
    every = "".join(ALPHABETS)
    for i in range(count):
        alphabet = ALPHABETS[i % len(ALPHABETS)] if i % 3 else every
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(2, 40))))
    return list(dict.fromkeys(texts))


def by_llama_cpp(model: Path) -> Encode:
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelParams()
    params.n_gpu_layers = 0
    loaded = llama_cpp.LlamaModel(str(model), params)
    return lambda text, special: list(loaded.get_vocab().tokenize(text, False, special))


def by_original(model: Path, original: Path) -> Encode:
    import gguf
    import tokenizers

    reader = gguf.GGUFReader(model)
    field = reader.fields["tokenizer.ggml.token_type"]
    kinds, texts = field.contents(), reader.fields["tokenizer.ggml.tokens"].contents()
    data = json.loads(original.read_text())
    data["added_tokens"] = [
        {**token, "special": kinds[token["id"]] == CONTROL}
        for token in data["added_tokens"]
        if token["id"] < len(kinds)
        and texts[token["id"]].replace(" ", "▁") == token["content"].replace(" ", "▁")
    ]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))

    def encode(text: str, special: bool) -> list[int]:
        tokenizer.encode_special_tokens = not special
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("--original", type=Path)
    args = parser.parse_args()
    encode = by_original(args.model, args.original) if args.original else by_llama_cpp(args.model)
    cases = []
    for text in corpus():
        plain, special = encode(text, False), encode(text, True)
        cases.append([text, plain] if plain == special else [text, plain, special])
    rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    oracle = "Hugging Face tokenizers, original tokenizer.json" if args.original else "llama.cpp"
    head = f'"made by": "make_tokenizer_golden.py", "oracle": {json.dumps(oracle)}'
    target = Path(__file__).parent / f"tokenizer_{args.name}.json"
    target.write_text(f'{{{head}, "cases": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
