"""The tasks that are known by name.

GLUE and the tasks of SuperGLUE that classify one or two texts. Left out are what has no training part (AX), what asks
for a choice between texts given side by side (COPA), for a span (ReCoRD) or about places in a text (WSC), and RTE of
SuperGLUE, which is GLUE's.
"""

from __future__ import annotations

from dataclasses import replace

from evenkeel.tasks._spec import Task

__all__ = ["KNOWN"]

_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_FALSE_TRUE = ("False", "True")

_GLUE = (
    Task(name="cola", text=("sentence",), metric="matthews", classes=("unacceptable", "acceptable")),
    Task(name="sst2", text=("sentence",), classes=("negative", "positive")),
    Task(name="mrpc", text=_PAIR, metric="f1", classes=("not_equivalent", "equivalent")),
    Task(name="qqp", text=("question1", "question2"), metric="f1", classes=("not_duplicate", "duplicate")),
    Task(name="stsb", text=_PAIR, metric="pearson"),
    Task(
        name="mnli",
        text=_NLI,
        classes=("entailment", "neutral", "contradiction"),
        validation="validation_matched",
        more=("validation_mismatched",),
    ),
    Task(name="qnli", text=("question", "sentence"), classes=("entailment", "not_entailment")),
    Task(name="rte", text=_PAIR, classes=("entailment", "not_entailment")),
    Task(name="wnli", text=_PAIR, classes=("not_entailment", "entailment")),
)

_SUPERGLUE = (
    Task(name="boolq", text=("question", "passage"), classes=_FALSE_TRUE),
    Task(name="cb", text=_NLI, metric="macro_f1", classes=("entailment", "contradiction", "neutral")),
    Task(name="multirc", text=("paragraph", "question+answer"), metric="f1", classes=_FALSE_TRUE),  # its F1a
    Task(name="wic", text=("word+sentence1", "sentence2"), classes=_FALSE_TRUE),
)

_EMBEDDED = (
    Task(name="grammar/acceptability", text=("sentence",), classes=("unacceptable", "acceptable")),
    Task(name="grammar/entailment", text=_PAIR, classes=("entailment", "not_entailment")),
    Task(name="grammar/paraphrase", text=_PAIR, classes=("not_paraphrase", "paraphrase")),
)

KNOWN: dict[str, Task] = {
    task.name: task
    for task in (
        *(replace(task, hub=("nyu-mll/glue", task.name)) for task in _GLUE),
        *(replace(task, hub=("aps/super_glue", task.name)) for task in _SUPERGLUE),
        *_EMBEDDED,
    )
}
