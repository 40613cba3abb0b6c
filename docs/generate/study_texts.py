"""What the page of the shipped studies says in words: what was varied, and what the figures do and do not show."""

from __future__ import annotations

INTRODUCTION = """\
Three studies are shipped; each was run once. `altup-moe study report` prints these tables from the committed rows
(`configs/study/results/NAME/rows.jsonl`) and writes the whole page, with values under the mouse. `altup-moe study run
NAME` runs one again. The models have one to three million parameters, one learning rate for all, and saw very few
tokens: they show what the tool says, and little about large models.

How the figures are computed is in [Studies](../guides/studies.md). In short:"""

WHAT = {
    "paper_small": """\
Dense models of three widths against AltUp with two and four blocks, recycled and with wide tables; the same block
always; `sum`, `round_robin` and `hc`. Corpus `wikipedia-sample`, 320 steps of 1,024 tokens, d = 96, untied tables of
2,048 words.""",
    "moe_capacity": """\
Dense, 4 and 8 experts, AltUp, and AltUp with 8 experts; capacity 1.0, 1.25 and none. Corpus `wikipedia-sample`, 160
steps.""",
    "overlap": """\
What hides under the experts' all-to-all when the network is slow: two ranks in network namespaces
([netlab](../guides/netlab.md)), two rates, five modes. Corpus `python-docs`.""",
}

READING = {
    "paper_small": """\
At equal latency AltUp with wide tables is better than dense here, with either width. Recycled, it is at K = 4; at
K = 2 nothing was found. How much of that would stay is open: after 328k tokens the dense curve still turns up at 2 d,
so "better than the whole curve" is said of a curve that was not trained to its end. Wider tables alone (`sum`) are two
fifths of what K = 2 with wide tables gains on the small dense model. That alternating blocks beat the same block, as in
the paper, was not found: the two losses lie within each other's spread.""",
    "moe_capacity": """\
The steps are too few to say anything about quality: every loss is little below what the words' frequencies give, and
no model with experts is shown to be better than the dense one. Latency can be read. Capacity 1.0, 1.25 and none do not
differ beyond their spread. Raise `budget.tokens` for an answer about quality.""",
    "overlap": """\
All rows end at the same loss. Halves of a micro-batch are what shortens a step. Mixing a stream of two blocks is so
little work here that hiding it saves no more than the steps' own spread.""",
}
