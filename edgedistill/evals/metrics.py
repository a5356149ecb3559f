"""How good answers are by the kind of their task: one score an item, and the figures of a whole set.

Token F1 as SQuAD's (Rajpurkar et al. 2016), ROUGE (Lin 2004, by `rouge-score`, which knows Latin letters and digits),
BLEU and chrF (`sacrebleu`, Post 2018), macro F1 over classes, and F1 over the arguments of function calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgedistill.core.errors import MissingError
from edgedistill.core.files import canonical_json
from edgedistill.core.kinds import answer_words, call_of, extract

ROUGE = ("rouge1", "rouge2", "rougeL")
Pairs = Sequence[tuple[str, Sequence[str]]]  # (output, right answers); of several the likest counts


def item_scores(pairs: Pairs, *, kind: str, correct: Sequence[bool]) -> list[float]:
    """A score in [0, 1] of each answer: token F1, ROUGE-L F1, or where the kind has but right and wrong, 1 or 0.

    Raises:
        MissingError: the kind needs a package that is not installed.
    """
    if kind == "question-answering":
        return [token_f1(output, answers) for output, answers in pairs]
    if kind in ("summarization", "conversation"):
        return [scores["rougeL"] for scores in rouge(pairs)]
    return [float(right) for right in correct]


def kind_figures(pairs: Pairs, *, kind: str, labels: Sequence[str] = ()) -> dict[str, float]:
    """The figures that are usual for a kind, each in [0, 1]; none for a kind that has but right and wrong.

    Raises:
        MissingError: the kind needs a package that is not installed.
    """
    if kind in ("classification", "nli"):
        return {"macro_f1": macro_f1(pairs, kind=kind, labels=labels)}
    if kind == "question-answering":
        return {"token_f1": _mean([token_f1(output, answers) for output, answers in pairs])}
    if kind == "function-call":
        return call_figures(pairs)
    if kind in ("summarization", "conversation"):
        scores = rouge(pairs)
        return {name: _mean([item[name] for item in scores]) for name in ROUGE} | translation_figures(pairs)
    return {}


def token_f1(output: str, answers: Sequence[str]) -> float:
    """F1 of the words that output and the likest answer share, without case, punctuation and articles."""
    said = answer_words(output)
    return max(_shared(said, answer_words(answer)) for answer in answers)


def macro_f1(pairs: Pairs, *, kind: str, labels: Sequence[str] = ()) -> float:
    """Mean over the classes of the right answers of each class's F1; an answer that names no class is none's."""
    read = [
        (extract(said, kind=kind, labels=labels), extract(answers[0], kind=kind, labels=labels))
        for said, answers in pairs
    ]
    said, wanted = (Counter(names) for names in zip(*read, strict=True)) if read else (Counter(), Counter())
    hits = Counter(answer for output, answer in read if output == answer)
    return _mean([_f1(hits[name], said[name], wanted[name]) for name in wanted])


def call_figures(pairs: Pairs) -> dict[str, float]:
    """Share of calls with the right function, and F1 of all (function, argument, value) triples."""
    hits = said = wanted = names = 0
    for output, answers in pairs:
        one, other = _triples(output), _triples(answers[0])
        names += one[0] is not None and one[0] == other[0]
        hits, said, wanted = hits + len(one[1] & other[1]), said + len(one[1]), wanted + len(other[1])
    return {"function_ratio": names / max(1, len(pairs)), "argument_f1": _f1(hits, said, wanted)}


def rouge(pairs: Pairs) -> list[dict[str, float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of each pair, words stemmed (Porter)."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge-score") from None
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = [scorer.score_multi(list(answers), output) for output, answers in pairs]
    return [{name: float(item[name].fmeasure) for name in ROUGE} for item in found]


def translation_figures(pairs: Pairs) -> dict[str, float]:
    """BLEU and chrF of the whole set against the first right answers, over 100."""
    try:
        import sacrebleu
    except ImportError:
        raise _missing("sacrebleu") from None
    outputs, answers = [output for output, _ in pairs], [[answers[0] for _, answers in pairs]]
    return {
        "bleu": sacrebleu.corpus_bleu(outputs, answers).score / 100,
        "chrf": sacrebleu.corpus_chrf(outputs, answers).score / 100,
    }


def _missing(package: str) -> MissingError:
    return MissingError(
        f"summaries and conversations are graded with the package {package}, which is not installed; "
        "pip install 'edgedistill[metrics]'"
    )


def _triples(text: str) -> tuple[str | None, set[tuple[Any, ...]]]:
    call = call_of(text)
    if call is None:
        return None, set()
    return call[0], {(call[0], name, canonical_json(value)) for name, value in call[1].items()}


def _shared(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def _f1(hits: int, said: int, wanted: int) -> float:
    return 2 * hits / (said + wanted) if said + wanted else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
