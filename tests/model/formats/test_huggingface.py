from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.footprint import mapped_share
from dask_infer.model.runtime.load_model import load, resident_bytes
from dask_infer.model.runtime.tokenizers import load_tokenizer
from dask_infer.spec import ModelSpec

transformers = pytest.importorskip("transformers")

TEXTS = ["hello", "a rather longer text about nothing", "word " * 400]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=90, n_positions=64,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return saved(transformers.GPT2LMHeadModel(config), tmp_path_factory)


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.DistilBertConfig(
        n_layers=2, n_heads=2, dim=32, hidden_dim=64, vocab_size=90
    )
    model = transformers.DistilBertForSequenceClassification(config)
    return saved(model.half(), tmp_path_factory)


def saved(model: torch.nn.Module, places: pytest.TempPathFactory) -> Path:
    transformers.utils.logging.disable_progress_bar()
    place = places.mktemp("model")
    model.save_pretrained(place)
    return place


def spec_of(path: Path, kind: str = "huggingface") -> ModelSpec:
    return ModelSpec(str(path), path.name, kind, path=str(path))


IDS = torch.tensor([[3, 4, 5], [6, 7, 0]])
MASK = (IDS > 0).long()


def test_architecture_comes_from_the_config(
    distilbert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(spec_of(distilbert))
    output = model.call((), {"input_ids": IDS, "attention_mask": MASK})
    assert output.logits.shape == (2, 2)
    assert type(model.target).__name__ == "DistilBertForSequenceClassification"
    assert not model.target.training
    assert model.floating == torch.float16
    assert capfd.readouterr().err == ""


def test_accepts_says_which_tokens_to_drop(distilbert: Path, gpt2: Path) -> None:
    accepts = load(spec_of(distilbert)).accepts
    assert accepts is not None
    assert {"input_ids", "attention_mask", "output_hidden_states"} <= accepts
    assert "token_type_ids" not in accepts
    assert load(spec_of(gpt2)).accepts is None


def test_forward_keeps_no_cache_and_generate_does(gpt2: Path) -> None:
    model = load(spec_of(gpt2))
    assert list(model.call((), {"input_ids": IDS})) == ["logits"]
    lengths = []
    first = model.target.transformer.h[0]
    hook = lambda _, args: lengths.append(args[0].shape[1])  # noqa: E731
    first.register_forward_pre_hook(hook)
    kwargs = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    model.call((), {"input_ids": IDS, "attention_mask": MASK, **kwargs}, "generate")
    assert lengths == [3, 1, 1]


def test_cache_of_the_callers_own_module_stays_on(gpt2: Path) -> None:
    own = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    found = recognise(own)
    found.snapshot()
    assert list(load(found.spec).call((), {"input_ids": IDS})) == ["logits"]
    assert own.config.use_cache


def test_weights_stay_mapped(minilm: Path) -> None:
    assert mapped_share(load(spec_of(minilm)).target) > 0.99


def test_converted_weights_are_mapped(distilbert: Path) -> None:
    model = load(spec_of(distilbert), dtype="bfloat16")
    assert model.floating == torch.bfloat16
    assert mapped_share(model.target) == 1.0
    output = model.call((), {"input_ids": IDS, "attention_mask": MASK})
    assert output.logits.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_projected_bytes_are_read_from_the_header(distilbert: Path) -> None:
    spec = spec_of(distilbert)
    measured = load(spec, dtype="float32").nbytes
    assert resident_bytes(spec, "float32") == pytest.approx(measured, rel=0.05)


def test_weights_that_the_checkpoint_lacks_are_named(
    distilbert: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(distilbert, tmp_path / "other")
    config = json.loads((place / "config.json").read_text())
    config["architectures"] = ["DistilBertForMaskedLM"]
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"lacks weights.*vocab_.*architectures"):
        load(spec_of(place))


def test_weights_of_other_shapes_are_named(distilbert: Path, tmp_path: Path) -> None:
    place = shutil.copytree(distilbert, tmp_path / "other")
    config = json.loads((place / "config.json").read_text())
    config["id2label"] = {str(i): f"label {i}" for i in range(5)}
    (place / "config.json").write_text(json.dumps(config))
    found = r"classifier\.bias is \(2,\), not \(5,\).*sizes there that were saved"
    with pytest.raises(ModelLoadError, match=found):
        load(spec_of(place))


@pytest.mark.parametrize("config", ["{}", "[]", '{"model_type": "homemade"}'])
def test_a_config_that_transformers_cannot_read_is_refused_at_the_call(
    config: str, distilbert: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(distilbert, tmp_path / "other")
    (place / "config.json").write_text(config)
    rows = dd.from_pandas(pd.DataFrame({"ids": [1, 2]}), npartitions=1)
    with pytest.raises(ModelLoadError, match=r"other/config\.json: .*save_pretrained"):
        rows.infer.predict(place, columns={"input_ids": ["ids"]})


def test_unknown_architecture_is_never_fetched(
    distilbert: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(distilbert, tmp_path / "other")
    config = json.loads((place / "config.json").read_text())
    config["architectures"] = ["Homemade"]
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="Homemade is not part of transformers"):
        load(spec_of(place))


def test_pickled_weights_are_not_read(distilbert: Path, tmp_path: Path) -> None:
    place = shutil.copytree(distilbert, tmp_path / "other")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="no safetensors weights"):
        load(spec_of(place))


def test_missing_extra_is_named(
    distilbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ModelLoadError, match=r'pip install "dask-infer\[huggingface\]"'
    ):
        load(spec_of(distilbert))


# Sentence-transformers


def test_embeddings_equal_the_library(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread of its own
    spec = recognise(minilm).spec
    assert spec.kind == "sentence-transformers"
    model, tokenizer = load(spec), load_tokenizer(spec.path)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    output = model.call((), dict(tokens))
    transformers.utils.logging.disable_progress_bar()
    pipeline = library.SentenceTransformer(str(minilm), device="cpu")
    wanted = pipeline.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(output.numpy(), wanted, atol=1e-5)
    assert model.interface == "tensor"
    assert mapped_share(model.target) > 0.99
    more = {**tokens, "special_tokens_mask": tokens["attention_mask"]}
    assert torch.equal(model.call((), more), output)  # what it takes no notice of


def test_embeddings_in_another_dtype(minilm: Path) -> None:
    model = load(spec_of(minilm, "sentence-transformers"), dtype="bfloat16")
    output = model.call((), {"input_ids": IDS, "attention_mask": MASK})
    assert output.dtype == torch.bfloat16
    assert mapped_share(model.target) > 0.99


def test_modules_of_others_are_not_imported(minilm: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(minilm, place, symlinks=True)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "antigravity.Fly"}]
    (place / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadError, match=r"antigravity\.Fly"):
        load(spec_of(place, "sentence-transformers"))
    assert "antigravity" not in sys.modules


# Tokenizers


def test_tokenizer_of_a_directory_is_loaded_once(minilm: Path) -> None:
    first = load_tokenizer(str(minilm))
    assert first is load_tokenizer(minilm)
    assert first.model_max_length == 256


def test_tokenizers_given_are_returned_as_they_are(minilm: Path) -> None:
    own = load_tokenizer(minilm)
    assert load_tokenizer(own) is own
    assert load_tokenizer(len) is len


COUNT = """
import os
from tokenizers import Tokenizer, models
from dask_infer.model.runtime.tokenizers import load_tokenizer

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
load_tokenizer(len, cores=3)
load_tokenizer(len, cores=5)
Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).encode_batch(["a"] * 100)
assert threads() - before == 3, threads() - before
assert not {"RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"} & set(os.environ)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts by /proc")
def test_tokenizing_takes_the_cores_of_the_process() -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TOKENIZERS_")}
    environ.pop("RAYON_NUM_THREADS", None)
    subprocess.run([sys.executable, "-c", COUNT], check=True, env=environ)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer=3: pass"):
        load_tokenizer(3)
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelLoadError, match="no directory"):
        load_tokenizer(tmp_path / "gone")


def test_a_directory_without_a_vocabulary_is_no_tokenizer(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)  # transformers invents one
    with pytest.raises(ModelLoadError, match=r"no vocabulary .*save_pretr"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "cat", "dog"]))
    assert load_tokenizer(tmp_path)(["cat"])["input_ids"][0].count(2) == 1


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(["a"])["input_ids"] == [[100, 1]]


def test_corrupt_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelLoadError, match=str(tmp_path)):
        load(ModelSpec("k", "bert", "huggingface", path=str(tmp_path)))
