"""Text to tokens and back, for tokenizers made from an alphabet and for those of a model folder.

A character outside the alphabet is an error before anything is computed, and a typed special token is plain text.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from forkpoint.errors import ModelError
from forkpoint.records import Ints, Message, frozen_array

PAD, EOS = "<pad>", "<eos>"
UNREADABLE = "\ufffd"
"""What a control token inside a text is shown as, one character a token."""


def alphabet_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character of `alphabet`; pad is 0, end of sequence 1."""
    if len(set(alphabet)) != len(alphabet):
        raise ModelError("[task] the alphabet holds a character twice.")
    vocabulary = {PAD: 0, EOS: 1} | {character: index + 2 for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


class Texts:
    """Encodes prompts and texts, decodes tokens, for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (self.eos_id or 0)
        vocabulary = tokenizer.get_vocab()
        specials = set(tokenizer.all_special_tokens)
        plain = {text: index for text, index in vocabulary.items() if text not in specials}
        self._characters = (
            plain if plain and all(len(text) == 1 for text in plain) and _is_word_level(tokenizer) else None
        )
        self._texts = {index: text for text, index in (self._characters or {}).items()}
        beginning = tokenizer.bos_token_id
        lead = tokenizer.encode("") if beginning is not None else []
        self._beginning = lead[:1] if lead[:1] == [beginning] else []
        self._specials = re.compile(
            "|".join(re.escape(text) for text in sorted(_special_texts(tokenizer), key=len)[::-1])
        )

    @property
    def by_character(self) -> bool:
        """Whether every token is one character."""
        return self._characters is not None

    def encode(self, text: str) -> Ints:
        """Tokens of a text, no special token added.  Raises ModelError for a character that the model cannot read."""
        if self._characters is not None:
            try:
                return frozen_array([self._characters[character] for character in text], np.int32)
            except KeyError as error:
                raise ModelError(
                    f"the character {error.args[0]!r} of the text {text[:40]!r} is outside the model's alphabet "
                    f"{''.join(sorted(self._characters))!r}."
                ) from None
        return frozen_array(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), np.int32)

    def encode_prompt(self, prompt: str | Sequence[Message]) -> Ints:
        """Tokens of a prompt: chat messages go through the chat template, and so does text where there is one.

        Without a template the beginning-of-sequence token comes first where the tokenizer is one that writes it.
        Raises ModelError for an empty prompt, and for messages that the template refuses.
        """
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
            tokens = self._render(messages)
        else:
            text = prompt if isinstance(prompt, str) else "".join(f"{message['content']}\n" for message in prompt)
            tokens = [*self._beginning, *self.encode(text).tolist()]
        if len(tokens) == 0:
            raise ModelError("a prompt is empty; it needs at least one token.")
        return frozen_array(tokens, np.int32)

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        """Tokens of the chat template's text, in which only the template's own special tokens are special.

        A special token typed in a message is swapped for a character that occurs nowhere else, and encoded as text.
        """
        written = "".join(message["content"] for message in messages)
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in written)
        typed = [text for message in messages for text in self._specials.findall(message["content"])]
        masked = [message | {"content": self._specials.sub(mark, message["content"])} for message in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(masked, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise ModelError(
                f"the model's chat template refuses a prompt: {str(error).splitlines()[0][:200]}"
            ) from None
        parts = rendered.split(mark) if typed else [rendered]
        if len(parts) != len(typed) + 1:
            raise ModelError(f"the model's chat template cannot place the text {typed[0]!r}, which is a special token.")
        tokens: list[int] = self.tokenizer.encode(parts[0], add_special_tokens=False)
        for text, part in zip(typed, parts[1:], strict=True):
            tokens += [*self.encode(text).tolist(), *self.tokenizer.encode(part, add_special_tokens=False)]
        return tokens

    def decode(self, tokens: Sequence[int] | Ints) -> str:
        """The text of tokens up to the end-of-sequence token that closes it, with the padding behind that left out.

        Any other control token that a policy wrote stays visible, so that no verifier reads past it.
        """
        kept = [int(token) for token in tokens]
        end = len(kept)
        while end and kept[end - 1] in (self.pad_id, self.eos_id):
            end -= 1
        closing = next((place for place in range(end, len(kept)) if kept[place] == self.eos_id), None)
        if closing is not None:
            del kept[closing:]
        if self._characters is not None:
            return "".join(self._texts.get(token, UNREADABLE) for token in kept)
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _special_texts(tokenizer: Any) -> set[str]:  # noqa: ANN401
    """The strings that the tokenizer would read as control tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {text for text in added | set(tokenizer.all_special_tokens) if text}


def _is_word_level(tokenizer: Any) -> bool:  # noqa: ANN401
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, WordLevel)
