"""A ladder: families of models at several sizes, each trained on several numbers of tokens with tuned rates."""
