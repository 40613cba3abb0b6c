"""The paper's path: pretrain, fine-tune, answer, and compare with a control from random weights."""
