"""Log-probabilities on disk: what tells models and completions apart, and files that cannot be trusted."""

import os

import pytest
import torch
from transformers import AutoConfig, BitsAndBytesConfig

from axolotl_aot.scoring.reference_cache import ReferenceCache, ReferenceFileError, digest, fingerprint


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new/folder/file.safetensors"
    scored = {digest([1, 2], [3]): -1.5, digest([1], [2, 3]): -0.25}
    saved = ReferenceCache(path, "model")
    saved.update(scored.items())
    saved.save()
    loaded = ReferenceCache(path, "model")
    loaded.load()
    assert len(loaded) == 2
    assert (loaded.lookup([1, 2], [3]), loaded.lookup([1], [2, 3])) == (-1.5, -0.25)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left


def test_no_file_is_no_fault(tmp_path):
    references = ReferenceCache(tmp_path / "none", "model")
    references.load()
    assert len(references) == 0


def test_where_the_prompt_ends_matters():
    digests = {digest(p, c) for p, c in (([1, 2], [3]), ([1], [2, 3]), ([], [1, 2, 3]), ([1, 2], [4]))}
    assert len(digests) == 4


def test_another_models_file_under_this_ones_name(tmp_path):
    ReferenceCache(tmp_path / "file", "one").save()
    with pytest.raises(ReferenceFileError, match="damaged or another model's"):
        ReferenceCache(tmp_path / "file", "other").load()


def test_one_flipped_bit_is_noticed(tmp_path):
    references = ReferenceCache(tmp_path / "file", "model")
    references.update([(digest([1], [2]), -1.0)])
    references.save()
    whole = references.path.read_bytes()
    for i in range(len(whole)):
        references.path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        loaded = ReferenceCache(references.path, "model")
        try:
            loaded.load()
        except ReferenceFileError:
            continue
        assert loaded.lookup([1], [2]) == -1.0, i  # in the header, without effect


def test_a_fingerprint_is_of_weights_and_precision(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model)
    first = fingerprint(config, dtype=torch.float32)
    assert fingerprint(AutoConfig.from_pretrained(tiny_model), dtype=torch.float32) == first
    config.use_cache = not config.use_cache  # gradient checkpointing does that
    assert fingerprint(config, dtype=torch.float32) == first
    quantized = AutoConfig.from_pretrained(tiny_model)
    quantized.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    stretched = AutoConfig.from_pretrained(tiny_model)
    stretched.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    others = [
        fingerprint(config, dtype=torch.bfloat16),
        fingerprint(quantized, dtype=torch.float32),
        fingerprint(stretched, dtype=torch.float32),
    ]
    weights = tiny_model / "model.safetensors"
    before = weights.stat()
    try:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # written anew
        others.append(fingerprint(config, dtype=torch.float32))
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len({first, *others}) == 5
