"""Load what passed the checks, one after another, in a process whose death names the case it died of.

Reads `engine TAB path` lines; writes `begin PATH` before and `end PATH WORD sentence` after each.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from edgedistill.core.errors import InputError
from edgedistill.core.records import Message
from edgedistill.runtimes import chat, llama_lib
from edgedistill.runtimes.base import open_session

PATIENCE_S = 60
CONTEXT = 32


def answer(engine: str, path: Path) -> None:
    """Everything a user's model is asked: logits, the cache, a batch, and its own tokenizer."""
    session = open_session(engine, path, threads=1, context=CONTEXT)
    session.logits([1, 2, 3, 4])
    session.reset()
    session.feed([5])
    session.generate([[1, 2, 3], [4, 5, 6]], max_new_tokens=3, eos_ids=frozenset())
    session.close()
    if engine == "llamacpp":
        llama_lib.tokenize_with(path, ["hello world 123\n<|im_end|> é"])
        llama_lib.end_ids(path)
    elif engine == "hf":
        tokenizer = chat.load_tokenizer(path)
        ask = [Message(role="user", content="turn on the light 123 " + "a" * 60 + "!")]
        chat.encode(tokenizer, chat.render(tokenizer, ask, template=chat.template_of(tokenizer)))
        chat.end_ids(path)


def main() -> None:
    for line in sys.stdin:
        engine, _, path = line.rstrip("\n").partition("\t")
        print("begin", path, flush=True)
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
        try:
            answer(engine, Path(path))
            said = "sound"
        except InputError as e:
            said = f"refused {e}".replace("\n", "\\n")
        print("end", path, said, flush=True)


if __name__ == "__main__":
    main()
