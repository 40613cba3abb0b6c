"""What the page of the shipped studies says in words: what was varied, and what the figures do and do not show."""

from __future__ import annotations

INTRODUCTION = """\
Five studies are shipped; each was run once. `altup-moe study report` prints these tables from the committed rows
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
    "streams": """\
Eight [residual streams around branches](../guides/residual_streams.md) beside the plain Transformer: recycled, K = 2
and 4, widths 16, 24 and 32 (2, 2 and 3 layers; the second has 4 experts, top-2), three seeds, a rate tuned for each
design and size. Corpus `wikipedia-sample`, 512 words, 300 steps of 1,024 tokens. One rank: mixing is inline, and
nothing of it hidden.""",
    "delayed": """\
[Outputs that are read one layer later](../concepts/delayed.md) beside those that the next layer reads: AltUp with two
and four blocks, recycled and with wide tables, and static hyper-connections with four, beside the plain Transformer;
widths 16 and 24 (4 and 6 layers, each with 4 experts, top-2), three seeds, a rate tuned for each design and size.
Corpus `wikipedia-sample`, 512 words, 300 steps of 1,024 tokens. One rank, on which nothing is exchanged: times are of
two steps each, and say nothing; what delayed outputs save is measured by `altup-moe bench overlap`.""",
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
    "streams": """\
No design learns more than the plain Transformer here. `altup` and `hc` lie within 0.02 nats of it at a width of 32
and are not told apart from it; `dynamic`, `mhc`, `mhc_single_pass`, `gated_residual` and K = 4 of `independent_hc`
lie 0.03 to 0.06 above, which three seeds do not establish after correction for sixteen comparisons (four to twelve
would). All of them cost time where nothing is hidden: a training step at a width of 32 takes 1.10 to 1.14 times the
plain one's with static weights, 1.28 to 1.39 with `independent_hc`, 1.41 to 1.68 with `dynamic` and the two `mhc`,
1.54 and 1.88 with `gated_residual`; a generated token up to 2.7 times. So at equal quality the plain model is the
faster one, and the Pareto front is its curve. What this does not show: these are 300 steps of models with two or
three layers, and the designs were published for deep ones; blocks are copies of one table, and coefficients moved
with the model's rate. Of width 32 mixing is a large part of a step, and of thousands a small one.""",
    "delayed": """\
Outputs that are read one layer later cost nothing that three seeds could tell: in nine of ten pairs (five designs, two
sizes) the delayed one has the lower mean loss, by 0.002 to 0.035 nats, in one the higher, by 0.002. No pair is told
apart, and no design from the plain model of its size after correction. Part of the difference may be that a delayed
`altup` sets recycled blocks apart from the first layer on, as wide tables do. Eight seeds, deeper models and losses at
equal seconds on a slow network are the next run.""",
}
