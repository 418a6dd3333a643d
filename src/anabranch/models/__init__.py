"""Files, tokenizers, chat templates, and architectures as short descriptions over one decoder."""
