"""What a tokenizer makes of text, as a short digest: two with the same one give the same tokens.

Its name does not tell: tokens are added by the YAML, files are edited in place, and the same tokenizer has
another path on another machine.
"""

import json
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

# What a tokenizer's files say of where it came from, or of how it was last called.
NOT_OF_THE_TOKENIZER = {
    "_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "padding",
    "tokenizer_file",
    "truncation",
    "vocab_file",
}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that a tokenizer saves: vocabulary, added tokens, normaliser, chat templates."""
    digest = blake2b(type(tokenizer).__name__.encode(), digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in files:
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(_contents(path))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A digest of a file's contents."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _contents(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    contents: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(contents, dict):
        contents = {key: value for key, value in contents.items() if key not in NOT_OF_THE_TOKENIZER}
    return json.dumps(contents).encode()
