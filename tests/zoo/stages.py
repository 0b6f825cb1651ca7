"""Architectures in two stages, in this process: split, and each stage run alone."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import CannotSplit, split
from tests.model.split.models import run, same, spec_of, whole
from tests.zoo.judge import Result
from tests.zoo.transformer import LENGTHS, build, classes, inputs

GROUP = "transformers, two stages"

#: One class of each of these families, and what it ends in.
FAMILIES = {
    "encoder": "Bert Roberta Albert DistilBert Electra DebertaV2 MPNet ModernBert "
    "RoFormer SqueezeBert ConvBert FNet Funnel Longformer XLNet CLIPText",
    "decoder": "GPT2 GPTNeo GPTNeoX GPTJ GPTBigCode Llama Mistral Qwen2 Qwen3 Gemma "
    "Gemma2 Phi Phi3 OPT Bloom Falcon Mpt StableLm Cohere Olmo2 Granite XGLM Glm",
    "mixture": "Mixtral Qwen2Moe Olmoe GptOss DeepseekV3",
    "state-space": "Mamba RecurrentGemma Jamba Lfm2",
    "encoder-decoder": "T5 Bart MBart Marian Pegasus M2M100 Blenderbot "
    "SwitchTransformers",
    "vision": "ViT DeiT Beit Dinov2 Swin ConvNext ResNet RegNet MobileNetV2 Levit "
    "Segformer PoolFormer Yolos",
    "video": "VideoMAE",
    "audio": "Wav2Vec2 Hubert WavLM",
    "spectra": "AST Whisper PatchTST",
    "pairs": "CLIPSeg Vilt",
}


def chosen() -> Iterator[tuple[str, str, str]]:
    """Yield the last class of each family: one with a head where there is one."""
    last = {family: (name, family, kind) for name, family, kind in classes()}
    for kind, names in FAMILIES.items():
        yield from (last[f"{kind}/{name}"] for name in names.split())


def judge(name: str, family: str, kind: str) -> Result:
    """Split, run both stages on a padded batch, and compare with the whole model."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome, detail = _outcome(name, family, kind)
    return Result(
        f"{name}, two stages", GROUP, outcome, detail, time.process_time() - start
    )


def _outcome(name: str, family: str, kind: str) -> tuple[str, str]:
    model = build(name, family)
    spec = spec_of(model)
    batch, examples = padded(name, family, kind)
    try:
        chain = split(spec, model, [], examples)
    except CannotSplit as error:
        return "refused", str(error)
    chain = pickle.loads(pickle.dumps(chain))
    middle = len(chain.blocks) // 2
    right = whole(spec, (), batch)
    try:
        given = run(spec, chain, (middle,), (), batch)
    except Exception as error:
        return "late", f"{type(error).__name__}: {error}"
    try:
        same(given, right)
    except AssertionError as error:
        return "wrong", str(error)
    return "inferred", ""


def padded(
    name: str, family: str, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Example]]:
    """Return a batch as a tokenizer pads it, and examples of its arguments."""
    _, _, rows = inputs(name, family, kind, LENGTHS)
    batch: dict[str, torch.Tensor] = {}
    examples: dict[str, Example] = {}
    for key in rows[0]:
        values = [row[key][0] for row in rows]
        if len({value.shape for value in values}) == 1:
            batch[key] = torch.stack(values)
            dtype = "floating" if batch[key].is_floating_point() else "int64"
            shape: Any = tuple(batch[key].shape[1:]) if dtype == "floating" else (None,)
            examples[key] = Example(dtype, shape)
            continue
        pad = torch.nn.utils.rnn.pad_sequence
        batch[key] = pad(values, batch_first=True, padding_value=1)
        mask = pad([torch.ones_like(value) for value in values], batch_first=True)
        examples[key] = Example("int64", (None,))
        if name.startswith("FNet"):
            continue
        batch["attention_mask"] = mask
        examples["attention_mask"] = Example("int64", (None,))
    return batch, examples


def results() -> list[Result]:
    """Judge each chosen class."""
    return [judge(*each) for each in chosen()]
