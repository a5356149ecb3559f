"""The reasoning in a reply, whichever way a server gives it, apart from the answer."""

from __future__ import annotations

import re

from edgedistill.core.kinds import THOUGHT
from edgedistill.synth.journal import Reply

_END = re.compile(r"^(?P<thought>.*?)</think>\s*", flags=re.DOTALL)  # templates write the beginning themselves


def parted(reply: Reply) -> tuple[str, str]:
    """Reasoning and answer of a reply; of one that never came to its answer the answer is empty."""
    text, thought = reply.text, reply.reasoning
    if found := THOUGHT.match(text):
        return "\n".join(filter(None, (thought, found["thought"].strip()))), text[found.end() :]
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>").strip(), ""
    if "<think>" not in text and (found := _END.match(text)):
        return found["thought"].strip(), text[found.end() :]
    return thought.strip(), text


def with_reasoning(thought: str, answer: str) -> str:
    """Both as one text, as models that reason in their answer write it."""
    return f"<think>\n{thought}\n</think>\n\n{answer}" if thought else answer
