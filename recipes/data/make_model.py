"""Makes the model folder of jsonl.toml: a small untrained decoder, a byte-level BPE tokenizer, a chat template.

Usage: python recipes/data/make_model.py FOLDER [QUESTIONS]
The tokenizer is trained on the questions file; weights are a function of a fixed seed, written in bfloat16.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from forkpoint.policies.tiny import build_decoder
from forkpoint.seeds import Key

VOCABULARY = 480
CONTEXT = 192
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts; each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def main() -> None:
    """Writes the folder."""
    folder = Path(sys.argv[1])
    questions = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("questions.jsonl")
    lines = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    texts = [line[name] for line in lines for name in ("question", "answer", "solution") if name in line]
    tokenizer = make_tokenizer(texts)
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=3, width=96, heads=4, context=CONTEXT,
        key=Key.root(0).child("byte-model"),
    )  # fmt: skip
    logging.disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
