"""A row of every task's data set, with the hub's columns, and the texts it becomes (T5's paper, appendix D)."""

from __future__ import annotations

from typing import Any

PAIR = {"sentence1": "It rains.", "sentence2": "It is wet."}
NLI = {"premise": "It rains.", "hypothesis": "It is wet."}
SQUAD = {
    "question": " Who? ",
    "context": "It was Ann.",
    "answers": {"text": ["Ann", "It was Ann"], "answer_start": [7, 0]},
}

ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "squad": (SQUAD, "question: Who? context: It was Ann.", "Ann"),
    "squad-bigbench": (SQUAD, "question: Who? context: It was Ann.", "Ann"),
    "squad-bigbench-sentences": (
        {
            **SQUAD,
            "context": "Who? It rained. It was Ann. Bob slept.",
            "answers": {"text": ["Ann", "Bob"], "answer_start": [23, 28]},
        },
        "question: Who? context: It was Ann.",
        "Ann",
    ),
    "boolq": (
        {"question": "is it wet", "passage": "It rains.", "label": 1},
        "boolq passage: It rains. question: is it wet",
        "True",
    ),
    "cb": ({**NLI, "label": 2}, "cb hypothesis: It is wet. premise: It rains.", "neutral"),
    "copa": (
        {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0},
        "copa choice1: Wet. choice2: Dry. premise: It rained. question: effect",
        "choice1",
    ),
    "multirc": (
        {
            "paragraph": "<b>Sent 1: </b>Ann won.<br>",
            "question": "Who?",
            "answer": "Ann",
            "idx": {"paragraph": 3, "question": 5, "answer": 7},
            "label": 1,
        },
        "multirc question: Who? answer: Ann paragraph: Sent 1: Ann won. ",
        "True",
    ),
    "record": (
        {
            "passage": "Ann won.\n@highlight\nBob lost",
            "query": "@placeholder won",
            "entities": ["Ann", "Bob"],
            "answers": ["Ann", "Ann", "Anna"],
        },
        "record query: @placeholder won entities: Ann, Bob passage: Ann won. Bob lost",
        "Ann",
    ),
    "rte": ({**NLI, "label": 0}, "rte hypothesis: It is wet. premise: It rains.", "entailment"),
    "wic": (
        {"word": "bank", "sentence1": "The bank.", "sentence2": "A bank.", "label": 0},
        "wic sentence1: The bank. sentence2: A bank. word: bank",
        "False",
    ),
    "wsc": (
        {
            "text": "Mark told Pete lies, and he hid them.",
            "span1_text": "Mark",
            "span2_text": "he",
            "span2_index": 5,
            "label": 1,
        },
        "wsc: Mark told Pete lies, and *he* hid them.",
        "Mark",
    ),
    "cola": ({"sentence": "It rains.", "label": 1}, "cola sentence: It rains.", "acceptable"),
    "sst2": ({"sentence": "good", "label": 1}, "sst2 sentence: good", "positive"),
    "mrpc": ({**PAIR, "label": 0}, "mrpc sentence1: It rains. sentence2: It is wet.", "not_equivalent"),
    "qqp": (
        {"question1": "Who?", "question2": "Who is it?", "label": 1},
        "qqp question1: Who? question2: Who is it?",
        "duplicate",
    ),
    "stsb": ({**PAIR, "label": 3.7}, "stsb sentence1: It rains. sentence2: It is wet.", "3.6"),
    "mnli": ({**NLI, "label": 2}, "mnli hypothesis: It is wet. premise: It rains.", "contradiction"),
    "qnli": (
        {"question": "Who?", "sentence": "Ann.", "label": 1},
        "qnli question: Who? sentence: Ann.",
        "not_entailment",
    ),
    "glue_rte": ({**PAIR, "label": 1}, "rte sentence1: It rains. sentence2: It is wet.", "not_entailment"),
    "wnli": ({**PAIR, "label": 1}, "wnli sentence1: It rains. sentence2: It is wet.", "entailment"),
    "rotten-tomatoes": ({"text": "good", "label": "positive"}, "sst2 sentence: good", "positive"),
}
