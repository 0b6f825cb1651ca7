"""Every architecture of the catalogue: rows in batches against each row alone."""

from __future__ import annotations

import functools
import inspect
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from tests.zoo import senses, sounds, texts, writers
from tests.zoo.judge import Case, Column, Trial

#: Lengths of ragged rows, in two partitions and batches of three rows and less.
LENGTHS = (5, 9, 3, 8, 6)
FIXED = (6,) * 5
#: Tokens that a decoder has read where both sides are given.
TARGETS = 4


@functools.lru_cache(maxsize=2)
def build(name: str, settings: str) -> torch.nn.Module:
    """Build with random weights, large enough that a wrong row is far off."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    torch.manual_seed(zlib.crc32(name.encode()))
    model = kind(kind.config_class(**_settings(name, settings))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and weight.is_floating_point():
                weight.normal_(0, 0.2)
        for part in model.modules():
            if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0
    return model


def _settings(name: str, family: str) -> dict[str, Any]:
    found = _families()[family][1]
    return dict(found)


@functools.cache
def _families() -> dict[str, tuple[str, Any, Any]]:
    """Return every family: its kind, its settings and the ends of its classes."""
    tables: dict[str, dict[str, Any]] = {
        "encoder": texts.ENCODERS,
        "decoder": writers.DECODERS,
        "mixture": writers.MIXTURES,
        "state-space": writers.STATES,
        "encoder-decoder": writers.TRANSLATORS,
        "vision": senses.IMAGES,
        "video": senses.VIDEOS,
        "audio": sounds.SOUNDS,
        "spectra": sounds.SPECTRA,
        "pairs": senses.PAIRS,
    }
    return {
        f"{kind}/{prefix}": (kind, *row)
        for kind, table in tables.items()
        for prefix, row in table.items()
    }


def classes() -> Iterator[tuple[str, str, str]]:
    """Yield each class, its family and its kind."""
    import transformers

    seen = set()
    for family, (kind, _, ends, *_rest) in _families().items():
        prefix = family.partition("/")[2]
        for end in ends:
            name = prefix + end
            if name not in seen and hasattr(transformers, name):
                seen.add(name)
                yield name, family, kind


def ids(lengths: tuple[int, ...], last: int | None = None) -> list[list[int]]:
    """Return rows of words."""
    random = np.random.default_rng(0)
    rows = [
        random.integers(texts.FIRST, texts.VOCABULARY, size=length).tolist()
        for length in lengths
    ]
    return [row if last is None else [*row[:-1], last] for row in rows]


def ragged(rows: list[list[int]]) -> Any:
    return pd.array(rows, dtype=pd.ArrowDtype(pa.list_(pa.int64())))


def fixed(rows: Any, dtype: pa.DataType) -> Any:
    flat = [np.asarray(row).ravel() for row in rows]
    kind = pa.list_(dtype, len(flat[0]))
    return pd.array([list(row) for row in flat], dtype=pd.ArrowDtype(kind))


def inputs(
    name: str, family: str, kind: str, lengths: tuple[int, ...]
) -> tuple[pd.DataFrame, dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Return a frame, how it is read, and each row's own arguments."""
    frame: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    rows: list[dict[str, torch.Tensor]] = [{} for _ in lengths]
    random = np.random.default_rng(1)

    def text(key: str, given: tuple[int, ...], last: int | None = None) -> None:
        words = ids(given, last)
        even = len(set(given)) == 1
        frame[key] = fixed(words, pa.int64()) if even else ragged(words)
        for row, word in zip(rows, words, strict=True):
            row[key] = torch.tensor([word])

    def floats(key: str, *shape: int) -> None:
        values = random.normal(size=(len(lengths), *shape)).astype("float32")
        frame[key] = fixed(values, pa.float32())
        shapes[key] = shape
        for row, value in zip(rows, values, strict=True):
            row[key] = torch.from_numpy(value)[None]

    side = senses.SIZE
    if kind in ("vision", "pairs"):
        floats("pixel_values", 3, side, side)
    if kind == "video":
        floats("pixel_values", 4, 3, side, side)
    if kind == "audio":
        floats("input_values", 400)
    if kind == "spectra":
        key, shape = _families()[family][3:]
        floats(key, *shape)
    if kind not in ("vision", "video", "audio", "spectra"):
        text("input_ids", lengths, 3 if kind == "encoder-decoder" else None)
    signature = inspect.signature(getattr(_transformers(), name).forward).parameters
    decodes = "decoder_input_ids" in signature
    classifies = "SequenceClassification" in name or "Audio" in name
    if decodes and not (classifies and kind != "spectra") and "Audio" not in name:
        text("decoder_input_ids", (TARGETS,) * len(lengths))
    call: dict[str, Any] = {"columns": {key: key for key in frame}}
    if shapes:
        call["shapes"] = shapes
    return pd.DataFrame(frame), call, rows


def _transformers() -> Any:
    import transformers

    return transformers


#: Masks the future only without its cache of keys and values, which forwards of the
#: library never keep: so it is held against itself without one.
UNCACHED = "FSMT"


def alone(model: Any, row: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of the model's output for one row."""
    more = {"use_cache": False} if type(model).__name__.startswith(UNCACHED) else {}
    with torch.inference_mode():
        output = model(**row, **more)
    fields = dict(output) if isinstance(output, dict) else vars(output)
    return {
        key: value[0].float().numpy() if value.is_floating_point() else value[0].numpy()
        for key, value in fields.items()
        if isinstance(value, torch.Tensor)
    }


#: Towers that compare each row's text with each row's image.
ALL_BY_ALL = ("CLIP", "Siglip", "ChineseCLIP", "AltCLIP", "MetaClip2", "Blip")
ALL_BY_ALL += ("GroupViT", "CLIPSeg", "OwlViT")
EMBEDS = {"text_embeds": "text_embeds", "image_embeds": "image_embeds"}


def trial(
    name: str,
    family: str,
    kind: str,
    lengths: tuple[int, ...],
    output: dict[str, str] | None = None,
) -> Trial:
    model = build(name, family)
    frame, call, rows = inputs(name, family, kind, lengths)

    def expected() -> list[Column]:
        outputs = [alone(model, row) for row in rows]
        return [
            Column(key, [_scalar(each[key]) for each in outputs])
            for key in outputs[0]
            if output is None or key in output
        ]

    call |= {"batch_size": 3}
    if output and output is not EMBEDS:  # the rest leaves out what is no row's
        call["output"] = output
    return Trial(model, frame, call, expected, rtol=1e-3, atol=1e-3, partitions=2)


def _scalar(value: np.ndarray[Any, Any]) -> Any:
    return value.reshape(()) if value.shape == (1,) else value


#: Classes whose code lets padding into words, whatever the mask says: a batch that a
#: tokenizer pads differs from its rows alone. The library runs rows of equal length.
LEAKS = {
    r"ConvBert": "convolves over tokens, padding included",
    r"Nystromformer": "means and convolutions over tokens, padding included",
    r"Funnel": "pools neighbouring tokens, padding included",
    r"Canine": "convolves and pools over characters, padding included",
    r"XLNetForSequenceClassification": "reads the last token, be it padding",
    r"Siglip(Text)?Model": "reads the last token, be it padding",
    r"Rwkv\w+\.generate": "is recurrent and takes no notice of the mask",
}


def generate_trial(name: str, family: str, kind: str) -> Trial:
    """Greedy continuations of prompts of unequal length."""
    model = build(name, family)
    frame, call, rows = inputs(name, family, kind, LENGTHS)
    frame, ids = frame[["input_ids"]], [row["input_ids"] for row in rows]
    more = {"max_new_tokens": 4, "do_sample": False}

    def expected() -> list[Column]:
        with torch.inference_mode():
            outputs = [model.generate(row, **more)[0].numpy() for row in ids]
        return [Column(None, outputs)]

    call = {"columns": {"input_ids": "input_ids"}, "batch_size": 3}
    call |= {"method": "generate", "call_kwargs": more}
    return Trial(model, frame, call, expected, partitions=2)


#: Kinds whose rows are tokens.
TEXTS = ("encoder", "decoder", "mixture", "state-space", "encoder-decoder", "pairs")


def cases() -> Iterator[Case]:
    """Each class on ragged rows where it reads texts, else on rows of one size.

    Of each family that reads texts two classes get rows of one size, too.
    """
    seen: Counter[str] = Counter()
    for name, family, kind in classes():
        what = functools.partial(trial, name, family, kind)
        group = f"transformers, {'vision' if kind == 'video' else kind}"
        group = group.replace("spectra", "audio and series")
        seen[family] += 1
        if name.removesuffix("Model") in ALL_BY_ALL:
            matrix = functools.partial(what, FIXED, {"logits_per_image": "score"})
            yield Case(f"{name}, logits_per_image", group, matrix)
            what = functools.partial(what, output=EMBEDS)
        if kind not in TEXTS or seen[family] <= 2:
            yield Case(f"{name}, fixed", group, functools.partial(what, FIXED))
        if kind in TEXTS:
            yield Case(f"{name}, ragged", group, functools.partial(what, LENGTHS))


WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MarianMTModel")


#: ``generate`` fails in transformers 5.24 itself, on a single row.
CANNOT_GENERATE = {"encoder-decoder/ProphetNet"}


def generated() -> Iterator[Case]:
    """`generate` of every decoder."""
    for name, family, kind in classes():
        writes = name.endswith(WRITERS) and kind not in ("encoder", "pairs", "spectra")
        if writes and family not in CANNOT_GENERATE:
            what = functools.partial(generate_trial, name, family, kind)
            yield Case(f"{name}.generate", "transformers, generate", what)
