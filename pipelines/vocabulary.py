"""The joint vocabulary: one byte-level BPE for all text of all tasks, parse trees included.

Ids: 0 is padding, 1 ends a sequence, then come the command tokens, then the 256 bytes, then merges.
A text is cut into words first (a blank belongs to the word after it, a digit stands alone), and
bytes merge inside a word only; so a number is spelled digit by digit and no text is unknown.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.files import read_retried, write_whole

PAD_ID = 0
EOS_ID = 1
PAD, EOS = "<pad>", "<eos>"

# One digit, or letters that may begin with an opening bracket ("(NP"), or one other sign; each
# takes the blank before it along.
WORD = r" ?\d| ?\(?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]|\s+|."


class VocabularyError(MMTrainError):
    """A vocabulary could not be trained or its file cannot be used."""


@dataclass(frozen=True)
class Vocabulary:
    """A trained vocabulary. Equal `text` means equal ids; it pickles, and loads in milliseconds.

    Args:
        text: the tokenizer as JSON, in the format of Hugging Face `tokenizers`.
        commands: names of the command tokens, in the order of their ids, from 2.
    """

    text: str
    commands: tuple[str, ...]

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, commands: Sequence[str]) -> "Vocabulary":
        """Byte pair encoding of the texts (Sennrich et al., arXiv:1508.07909) over bytes.

        The order of the texts does not matter.

        Args:
            texts: training texts of all tasks, in normal form.
            size: ids in all, at most; small corpora give fewer.
            commands: names of the command tokens, e.g. "to_english".

        Raises:
            VocabularyError: `size` leaves no room for the bytes.
        """
        reserved = [PAD, EOS, *(f"<{name}>" for name in commands)]
        if size < len(reserved) + 256:
            raise VocabularyError(
                f"vocabulary size {size} is too small; use {len(reserved) + 256} or more"
            )
        tokenizer = untrained_tokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=reserved,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        counts = Counter(texts)
        tokenizer.train_from_iterator(
            (text for text in sorted(counts) for _ in range(counts[text])), trainer
        )
        trained = json.loads(tokenizer.to_str())
        trained["added_tokens"] = []  # else "<eos>" written in a text would become the id of EOS
        return cls(text=json.dumps(trained, ensure_ascii=False), commands=tuple(commands))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """A vocabulary that `save` wrote.

        Raises:
            VocabularyError: the file is missing or not a vocabulary.
        """
        try:
            saved = json.loads(read_retried(Path(path).read_bytes, path=path))
            text = json.dumps(saved["tokenizer"], ensure_ascii=False)
            return cls(text=text, commands=tuple(saved["commands"]))
        except FileNotFoundError as error:
            raise VocabularyError(f"no vocabulary at {path}; build the corpora first") from error
        except (ValueError, KeyError, TypeError) as error:
            raise VocabularyError(f"{path} is not a vocabulary: {error}; build it again") from error

    def save(self, path: str | Path) -> None:
        """Writes JSON; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {"commands": list(self.commands), "tokenizer": json.loads(self.text)}
        write_whole(path, json.dumps(saved, ensure_ascii=False))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read from `text` when first used in a process."""
        return Tokenizer.from_str(self.text)

    @cached_property
    def size(self) -> int:
        """Number of ids; every id is below it."""
        return self.tokenizer.get_vocab_size()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents, 16 hex digits: equal digests give equal ids."""
        contents = json.dumps([self.commands, json.loads(self.text)], sort_keys=True)
        return hashlib.sha256(contents.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, object]:
        return {"text": self.text, "commands": self.commands}  # not what cached_property keeps

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without EOS. Never an id of padding, EOS or a command."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; padding, EOS and commands are left out."""
        first = 2 + len(self.commands)
        return self.tokenizer.decode([int(i) for i in ids if i >= first]).removeprefix(" ")

    def command_id(self, name: str) -> int:
        """Id of a command token, e.g. of "to_english".

        Raises:
            UnknownNameError: the vocabulary has no such command.
        """
        if name not in self.commands:
            raise UnknownNameError("command", name, self.commands)
        return 2 + self.commands.index(name)


def untrained_tokenizer() -> Tokenizer:
    """How a text becomes words and words bytes; merges are still to be learned.

    A blank goes before the text, so that a word has the same id wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
