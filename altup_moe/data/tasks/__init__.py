"""Tasks as text to text (T5, arXiv 1910.10683): examples become inputs and targets, answers become metrics."""
