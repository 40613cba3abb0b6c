"""What the page of the shipped ladders says in words: what was varied, and what the figures do and do not show."""

from __future__ import annotations

INTRODUCTION = """\
A [ladder](../guides/studies.md#a-ladder-of-sizes) trains families of models at several sizes and numbers of tokens,
tunes a rate for each family and size, and fits a [law](../guides/scaling_laws.md). Each was run once on two CPU cores;
the models are tiny, and what holds for them need not hold for large ones.

<!-- not run: hours at full size -->
```bash
altup-moe study run ladder_small
altup-moe study law configs/study/results/ladder_small --shared
```

How to read the tables and pictures: [the curves on the page](../guides/scaling_laws.md#the-curves-on-the-page).
A multiplier is how many times the family's cost the dense family needs for the same loss: above 1 the family is
cheaper."""

WHAT = {
    "ladder": """\
The AltUp paper's question over sizes: dense, AltUp K = 2 and 4, recycled and with wide tables; widths 16, 24, 32 and
48; 384k, 768k and 1,536k tokens; three seeds. Corpus `wikipedia-sample`, 512 words, 1.39 million tokens to train on.
Some two hours of two cores beside other work; steps were measured on a quiet machine.""",
    "ladder_small": """\
The newcomer's ladder, some twenty minutes on two cores (41 CPU minutes, steps measured): dense, AltUp K = 2 recycled
and K = 4 with wide tables; widths 16, 24, 32 and 40; 102k, 205k and 410k tokens; three seeds. Corpus
`wikipedia-sample`, 512 words. Other work shared the machine while it trained, and while steps were timed.""",
    "transfer": """\
Does a rate that was tuned at the smallest size do at the largest, with [muP](../guides/mup.md) and without? Widths 24,
48 and 96, 2, 2 and 4 layers, 307k tokens, five rates, one seed: the tries are the answer, and there is no law to fit.
Twenty-five minutes on two cores beside other work.""",
}

READING = {
    "ladder": """\
With wide tables AltUp is cheaper than the dense family at equal FLOPs, K = 2 by 1.13 and K = 4 by 1.52 times; at equal
seconds K = 4 by 1.36 times, and K = 2 is not decided. Recycled, K = 2 is not decided, and K = 4 is dearer at equal
seconds. Most multipliers lie beyond the sizes that were trained. The law fits all losses to 1.3 %, but it does not
predict the largest size: 5 of 15 means lie inside their intervals. Predictions are too high for the most tokens and
too low for the fewest, in every family, so one beta does not hold from a width of 16 to 48; comparisons of families
suffer less from that than each curve does. The best rates fall with the width, and the rate of 16 costs 0.04 to 0.09
nats at 48.""",
    "ladder_small": """\
The law fits to 0.9 %, and the largest size, held out, lies inside its interval in 8 of 9 cases; no rate lies at an end
of what was tried. No family is told apart from the dense one at equal FLOPs. At equal seconds AltUp K = 2, recycled, is
dearer here: its coefficients gain nothing that 410k tokens show, and at a width of 40 mixing is a visible part of a
step. K = 4 with wide tables is not decided. All of it lies beyond the sizes that were trained, where a law is weakest.
The best rate falls from 0.028 at a width of 16 to 0.012 at 40, and the rate of 16 costs 0.17 nats at 40: a ladder with
one rate for all sizes would have measured its rate.""",
    "transfer": """\
The standard parametrization's best rate falls from 0.010 to 0.007 (dense) and from 0.011 to 0.006 (K = 4) as the width
goes from 24 to 96. Under muP it does not stay still either: it rises, from 0.010 to 0.022 and from 0.011 to 0.017. The
rate of 24 costs 0.04 nats at 96 with and without muP for the dense model; at K = 4 it costs 0.06 without and 0.01 with.
Under muP the losses near the best rate are flat, and twice that rate does little harm. One seed: differences below 0.02
nats mean little.""",
}
