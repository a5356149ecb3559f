"""Records, rejects and logits out of journals alone: the same bytes whatever was killed or failed on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from edgedistill.core.errors import StageError, shortened
from edgedistill.core.files import atomic_path, canonical_json, remove, write_jsonl
from edgedistill.core.kinds import calls_of
from edgedistill.core.records import Prompt, Rejected, TeacherRecord, ToolCall
from edgedistill.runtimes import chat
from edgedistill.runtimes.logit_cache import CacheIdentity, LogitRow, row_key, write_cache
from edgedistill.runtimes.plain_tokenizer import load_plain
from edgedistill.runtimes.tool_chat import spoken
from edgedistill.synth.api_logprobs import logit_row, token_bytes
from edgedistill.synth.label import Counts
from edgedistill.synth.service import stream_prompts
from edgedistill.synth.several import Outcome

EXAMPLES = 3  # of rejects in an error


@dataclass(frozen=True)
class StudentTokens:
    """How the student reads text, which is all that an API gives; `of_bytes` has ids by a token's bytes in hex.

    `spoken` tells how the student says an answer to a prompt. `identity` names a teacher that each record's own stands
    in for.
    """

    prompt: Callable[[Prompt], list[int]]
    text: Callable[[str], list[int]]
    end_id: int
    end_ids: Collection[int]
    identity: CacheIdentity
    spoken: Callable[[Prompt, str], str] = lambda prompt, answer: answer
    of_bytes: Mapping[str, int] = field(default_factory=dict)


def student_tokens(folder: Path, *, chat_template: str | None, teacher: str, distributions: bool) -> StudentTokens:
    """How the tokenizer in `folder` reads prompts and answers; with `distributions` also the bytes of each token.

    A tokenizer kept there by `save_plain` needs no transformers, which alone would take most of the memory.

    Raises:
        InputError: there is no tokenizer, template or end of generation.
    """
    tokenizer = load_plain(folder) or chat.load_tokenizer(folder)
    template = chat.template_of(tokenizer, chat_template)
    ends = chat.end_ids(folder)
    return StudentTokens(
        prompt=lambda prompt: chat.encode(tokenizer, chat.render(tokenizer, prompt.messages, template=template)),
        text=lambda text: chat.encode(tokenizer, text),
        spoken=lambda prompt, answer: spoken(tokenizer, prompt.messages, answer, template=template),
        end_id=chat.turn_end(tokenizer, template=template, ends=ends),
        end_ids=ends,
        identity=CacheIdentity(chat.tokenizer_hash(folder), chat.template_hash(template), teacher),
        of_bytes=token_bytes(folder) if distributions else {},
    )


def write_records(
    paths: Sequence[Path],
    *,
    folder: Path,
    settle: Callable[[Prompt], Outcome],
    tokens: StudentTokens,
    top_k: int,
    shard_size: int,
) -> Counts:
    """Write records, rejects and, where log-probs of the student's tokens are there, logits into `folder`.

    Each teacher's logits of a shard are a file of their own, with `top_k` log-probs at most. `settle` tells what became
    of a prompt. What a killed process left in `folder` is written anew.

    Raises:
        StageError: no answer is kept, or what `settle` raises.
    """
    for left in (*folder.glob("records-*.jsonl"), *folder.glob("logits-*.safetensors")):
        remove(left)
    kept = answer_tokens = asked = number = 0
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    prompts = stream_prompts(paths)
    with atomic_path(folder / "rejected.jsonl") as temporary, temporary.open("w", encoding="utf-8") as rejects:
        while shard := list(islice(prompts, shard_size)):
            records, rows = [], dict[str, dict[str, LogitRow]]()
            for prompt in shard:
                made = _made(prompt, settle(prompt), tokens=tokens, top_k=top_k)
                if isinstance(made, Rejected):
                    reasons[made.reason] += 1
                    if len(examples) < EXAMPLES:
                        examples.append(f"{made.reason}: {shortened(made.detail or made.answer)}")
                    rejects.write(canonical_json(made.model_dump(mode="json")) + "\n")
                    continue
                record, row = made
                records.append(record)
                if row is not None:
                    rows.setdefault(record.teacher, {})[str(record.logits_key)] = row
            for place, (teacher, of_one) in enumerate(rows.items()):
                name = f"logits-{number:05d}" + (f"-{place}" if place else "")
                write_cache(folder / f"{name}.safetensors", of_one, identity=_own(tokens, teacher))
            write_jsonl(folder / f"records-{number:05d}.jsonl", [r.model_dump(mode="json") for r in records])
            number, asked, kept = number + 1, asked + len(shard), kept + len(records)
            answer_tokens += sum(len(r.answer_ids) for r in records)
    if not kept:
        raise StageError(f"all {asked} answers of the teacher were rejected ({'; '.join(examples)}); look at them")
    return Counts(asked=asked, kept=kept, rejected=dict(sorted(reasons.items())), answer_tokens=answer_tokens)


def _made(
    prompt: Prompt, outcome: Outcome, *, tokens: StudentTokens, top_k: int
) -> Rejected | tuple[TeacherRecord, LogitRow | None]:
    answer = outcome.text
    if outcome.fault is None:
        answer = answer.removesuffix(outcome.said) + tokens.spoken(prompt, outcome.said)
    said = tokens.text(answer) if outcome.fault is None else []
    fault = outcome.fault
    if ends := sorted(set(said) & set(tokens.end_ids)):
        fault = ("ends-inside", f"the text has the student's end token {ends[0]} in it")
    if fault is not None:
        return Rejected(prompt_id=prompt.id, answer=outcome.text, reason=fault[0], detail=fault[1])
    asked, ids = tokens.prompt(prompt), [*said, tokens.end_id]
    row, teacher = None, outcome.service.name
    if top_k and outcome.logprobs:
        row = logit_row(outcome.logprobs, ids, token_ids=tokens.of_bytes, k=top_k)
    record = TeacherRecord(
        id=outcome.request,
        prompt_id=prompt.id,
        teacher=teacher,
        messages=prompt.messages,
        answer=answer,
        calls=_calls(prompt, outcome.said),
        prompt_ids=tuple(asked),
        answer_ids=tuple(ids),
        logits_key=row_key(asked, ids, identity=_own(tokens, teacher)) if row is not None else None,
        kind=prompt.kind,
    )
    return record, row


def _own(tokens: StudentTokens, teacher: str) -> CacheIdentity:
    """Under which a teacher's distributions are kept."""
    return replace(tokens.identity, teacher=teacher)


def _calls(prompt: Prompt, answer: str) -> tuple[ToolCall, ...]:
    """The calls of an answer, where the prompt tells of functions beside its text."""
    told = any(m.tools for m in prompt.messages)
    return tuple(ToolCall(**call) for call in (calls_of(answer) or ())) if told else ()
