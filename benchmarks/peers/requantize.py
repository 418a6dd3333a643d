"""A GGUF file in the format a peer is fastest with: `python -m peers.requantize IN OUT TYPE`.

Every matrix takes the type (Q4_0 or Q8_0), so the peer reads no more bytes than it has to.
"""

import os
import sys

import llama_cpp as api

TYPES = {"Q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0}


def main(source: str, target: str, kind: str) -> None:
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, None)
    params = api.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.pure = TYPES[kind], True, True
    part = target + ".part"
    if api.llama_model_quantize(source.encode(), part.encode(), params):
        raise SystemExit(f"cannot turn {source} into {kind}")
    os.replace(part, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
