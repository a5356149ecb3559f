"""Records, rejects and logits out of the journal alone: the same bytes whatever was killed or failed on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path

from edgedistill.core.errors import StageError, shortened
from edgedistill.core.files import atomic_path, canonical_json, remove, write_jsonl
from edgedistill.core.records import Prompt, Rejected, TeacherRecord
from edgedistill.runtimes.logit_cache import CacheIdentity, LogitRow, row_key, write_cache
from edgedistill.synth.api_logprobs import logit_row
from edgedistill.synth.journal import Journal
from edgedistill.synth.label import Counts, Judge
from edgedistill.synth.service import Service, stream_prompts


def write_records(
    paths: Sequence[Path],
    *,
    folder: Path,
    journal: Path,
    service: Service,
    judge: Judge,
    prompt_ids: Callable[[Prompt], list[int]],
    text_ids: Callable[[str], list[int]],
    end_id: int,
    end_ids: Collection[int],
    identity: CacheIdentity,
    token_ids: Mapping[str, int],
    top_k: int,
    shard_size: int,
) -> Counts:
    """Write records, rejects and, where the server gave log-probs of the student's tokens, logits into `folder`.

    `prompt_ids` and `text_ids` are the student's tokens: text is all that an API hands over. `token_ids` gives the id
    of a token's bytes in hex. What a killed process left in `folder` is written anew; the journal is what counts.

    Raises:
        StageError: a prompt has neither an answer nor a failure, or no answer is kept.
    """
    for left in (*folder.glob("records-*.jsonl"), *folder.glob("logits-*.safetensors")):
        remove(left)
    kept = tokens = asked = 0
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    answers = Journal(journal)
    prompts = stream_prompts(paths)
    try:
        with atomic_path(folder / "rejected.jsonl") as temporary, temporary.open("w", encoding="utf-8") as rejects:
            number = 0
            while shard := list(islice(prompts, shard_size)):
                records, rows = [], {}
                for prompt in shard:
                    made = _made(
                        prompt, service=service, answers=answers, judge=judge, prompt_ids=prompt_ids,
                        text_ids=text_ids, end_id=end_id, end_ids=end_ids, identity=identity, token_ids=token_ids,
                        top_k=top_k,
                    )  # fmt: skip
                    if isinstance(made, Rejected):
                        reasons[made.reason] += 1
                        examples += [f"{made.reason}: {shortened(made.detail or made.answer)}"][: 3 - len(examples)]
                        rejects.write(canonical_json(made.model_dump(mode="json")) + "\n")
                        continue
                    record, row = made
                    records.append(record)
                    if row is not None:
                        rows[str(record.logits_key)] = row
                if rows:
                    write_cache(folder / f"logits-{number:05d}.safetensors", rows, identity=identity, k=top_k)
                write_jsonl(folder / f"records-{number:05d}.jsonl", [r.model_dump(mode="json") for r in records])
                number, asked, kept = number + 1, asked + len(shard), kept + len(records)
                tokens += sum(len(r.answer_ids) for r in records)
    finally:
        answers.close()
    if not kept:
        raise StageError(f"all {asked} answers of the teacher were rejected ({'; '.join(examples)}); look at them")
    return Counts(asked=asked, kept=kept, rejected=dict(sorted(reasons.items())), answer_tokens=tokens)


def _made(
    prompt: Prompt,
    *,
    service: Service,
    answers: Journal,
    judge: Judge,
    prompt_ids: Callable[[Prompt], list[int]],
    text_ids: Callable[[str], list[int]],
    end_id: int,
    end_ids: Collection[int],
    identity: CacheIdentity,
    token_ids: Mapping[str, int],
    top_k: int,
) -> Rejected | tuple[TeacherRecord, LogitRow | None]:
    request = service.question(prompt).id
    reply = answers.reply(request)
    if reply is None:
        failure = answers.past.failures.get(request)
        if failure is None:
            raise StageError(f"expected an answer to prompt {prompt.id} in {answers.path}, found none; run synth again")
        return Rejected(prompt_id=prompt.id, answer="", reason=failure.reason, detail=failure.detail)
    if fault := judge(reply.text, reply.finish, prompt):
        return Rejected(prompt_id=prompt.id, answer=reply.text, reason=fault[0], detail=fault[1])
    said = text_ids(reply.text)
    if ends := sorted(set(said) & set(end_ids)):
        detail = f"the text has the student's end token {ends[0]} in it"
        return Rejected(prompt_id=prompt.id, answer=reply.text, reason="ends-inside", detail=detail)
    asked, ids = prompt_ids(prompt), [*said, end_id]
    row = logit_row(reply.logprobs, ids, token_ids=token_ids, k=top_k) if top_k and reply.logprobs else None
    record = TeacherRecord(
        id=request,
        prompt_id=prompt.id,
        teacher=service.name,
        messages=prompt.messages,
        answer=reply.text,
        prompt_ids=tuple(asked),
        answer_ids=tuple(ids),
        logits_key=row_key(asked, ids, identity=identity) if row is not None else None,
    )
    return record, row
