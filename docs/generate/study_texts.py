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
and four blocks, recycled and with wide tables, and the plain Transformer, whose delayed form (`altup.width: 1` around
branches) is FarSkip's; widths 16, 24 and 32 (4, 6 and 8 layers, each with 4 experts, top-2), with eight, three and
three seeds, a rate tuned for each design and size on 300 steps and one seed. Corpus `wikipedia-sample`, 512 words, 300
and 411 steps of 1,024 tokens. One rank, on which nothing is exchanged: times say nothing and are left out.

What equal seconds are: on a slow network `altup-moe bench overlap` measured for a delayed step around layers 0.67 to
0.74 of the time of one whose layers go one by one ([the table](../concepts/delayed.md#what-it-hides): 200 and 400
Mbit/s, K = 2 and 4), and 411 steps of 0.73 last as long as 300. These are step times of the benchmark's model (d = 256,
experts on two nodes), not of the models below. The plain stream is delayed around branches, where a step takes 0.85 to
0.92, so it is not compared at equal seconds. Halves of a micro-batch (`overlap.microbatch_halves`) save `next` the same
time, 0.66 to 0.75, and change no model: where they are allowed both have the longer run, and the columns of equal steps
are what counts.""",
}

PAIRS = """\
A design with delayed outputs less the same design without: nats a token in pairs of seeds, in brackets the 95 %
interval of that cell alone, p by Holm among the cells of a column. Bold: told apart."""

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
At equal steps delayed outputs cost nothing, and at width 16, with eight seeds, the delayed models are better: by 0.022
nats after 300 steps (95 % interval 0.014 to 0.031, p 0.001) and by 0.019 after 411 (0.011 to 0.027, p 0.003), the mean
over the five designs. All five have the lower mean there, after 411 steps by 0.001 to 0.038; no single design is told
apart. At widths 24 and 32, with 6 and 8 layers and three seeds, the means are 0.014 and 0.008 lower after 300 steps and
0.003 and 0.003 after 411, all hold 0, and the sign differs from design to design. FarSkip's form of the plain model
does as the others do, so the effect is not one of wide streams.

We do not know why. Layers that read the same input are alike a shallower, wider model, which may suit 300 steps of a
model of four layers, and less so a deeper one: the gain is smaller with more layers, and smaller after more steps.
Nothing here says that it lasts.

At equal seconds, as defined above, delayed designs are better in all twelve pairs, by 0.07 to 0.13 nats, and on their
mean by 0.098, 0.111 and 0.109, told apart at every size. Most of it is the 111 steps more: `next` gains 0.079, 0.103
and 0.108 by them itself, so that it says as much of how far these models are from the end of their training as of the
designs.

Part of a difference may be that a delayed `altup` sets recycled blocks apart from the first layer on, as wide tables
do. Rows of several commits and two systems are mixed; six pairs of the plain design (300 steps) are of two of them.""",
}
