"""What the page of the shipped studies says in words: what was varied, and what the figures do and do not show."""

from __future__ import annotations

INTRODUCTION = """\
Four studies are shipped; each was run once. `altup-moe study report` prints these tables from the committed rows
(`configs/study/results/NAME/rows.jsonl`) and writes the whole page, with values under the mouse. `altup-moe study run
NAME` runs one again. The models have up to three million parameters, most studies one learning rate for all, and all
saw few tokens: they show what the tool says, and little about large models.

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
AltUp with wide tables learns more than the dense model of its size here, with K = 2 and with K = 4. At K = 2 it is also
faster at equal quality, in a training step and in prefill; at K = 4 the loss lies beyond the dense curve, and the bound
does not say which is faster. Of no other model did three seeds show a difference. The interval of K = 4 recycled
leaves out 0 on its own, but so does the best of eight comparisons by chance too often (p 0.13; about 5 seeds would tell
it). What a wide table alone (`sum`) gains was not told apart from nothing, and whether alternating blocks beat the
same block, as in the paper, is not answered by these rows. After 328k tokens the dense curve still turns up at 2 d, so
"better than the whole curve" is said of a curve that was not trained to its end.""",
    "moe_capacity": """\
The steps are too few, and two seeds too, to say anything about quality: every loss is little below what the words'
frequencies give, and no model is told apart from the dense one. Latency can be read: with 8 experts a generated token
takes twice as long as in the dense model. Of the training step, whose time differs more from seed to seed, nothing is
shown. Raise `budget.tokens` and `seeds` for an answer about quality.""",
    "overlap": """\
All rows end at the same loss. Halves of a micro-batch are what shortens a step. Mixing a stream of two blocks is so
little work here that hiding it saves no more than the steps' own spread.""",
}
