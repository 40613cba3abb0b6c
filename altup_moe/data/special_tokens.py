"""What stands around a text in a model's input: one rule for training, generation, tasks and exported tokenizers.

document    of a corpus, and the inputs of a task: `Tokenizer.document`.
prompt      what a run is asked, below: as a document whose text is the prompt, up to where the model goes on.

With `Tokenizer.add_special_tokens`, which imports set, a prompt has around it what the tokenizer's own post-processor
adds, as under transformers. Else nothing stands before a text. Behind a prompt that is answered, not continued, stands
the end token: an encoder's inputs end so in training, and those of a decoder that learned from pairs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from altup_moe.config import DataConfig, ModelConfig
from altup_moe.config.data_checks import TASK_NAMES, mixture_entries
from altup_moe.data.template import Template
from altup_moe.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptFormat:
    """The tokens around a prompt. ``empty``: the id that stands for a prompt without any, an end token."""

    template: Template
    empty: int

    def ids(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """The model's input of a prompt. Special tokens that it spells are tokens, where the tokenizer says so."""
        return self.template.around(tokenizer.encode_prompt(text)) or [self.empty]


def prompt_format(model: ModelConfig, data: DataConfig, tokenizer: Tokenizer) -> PromptFormat:
    """How a run's prompts are built."""
    ended = Template(tokenizer.document_start, (tokenizer.eod,))
    if model.encoder_decoder:
        template = tokenizer.template if tokenizer.add_special_tokens else ended
    elif _only_pairs(data):
        template = ended
    else:
        template = tokenizer.template if tokenizer.add_special_tokens else Template()
    return PromptFormat(template, tokenizer.eod)


def _only_pairs(data: DataConfig) -> bool:
    """Whether every sample of a decoder was an input and its target: of span corruption, or of tasks alone."""
    names = list(mixture_entries(data.mixture))
    return data.objective == "span_corruption" or (bool(names) and all(name in TASK_NAMES for name in names))
