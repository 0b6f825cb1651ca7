"""Rows of tokens of unequal length: each is predicted as if it were alone."""

from typing import ClassVar

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer import InputError, OutputError

transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 6, 7, 8, 4, 3], [9, 10], [11, 12, 13], [2], [7, 7, 7, 7]]
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
LISTS = pd.ArrowDtype(pa.list_(pa.int64()))


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set({"scheduler": "sync", "dataframe.convert-string": False}):
        yield


def frame_of(ids, dtype=LISTS, npartitions=1):
    frame = pd.DataFrame({"ids": pd.Series(ids, dtype=dtype)})
    return dd.from_pandas(frame, npartitions=npartitions)


def made(kind, config, **changes):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    return model.eval()


def llama(kind="LlamaForCausalLM", generation=(), **changes):
    config = transformers.LlamaConfig(**{**SMALL, **changes})
    return made(kind, config, **dict(generation))


def alone(model, ids, **options):
    """One prompt through the model as transformers has it."""
    with torch.inference_mode():
        return model.generate(torch.tensor([ids]), **options)[0].tolist()


@pytest.mark.parametrize(
    ("dtype", "batch_size"), [(LISTS, 1), (LISTS, 3), (LISTS, "auto"), (object, "auto")]
)
def test_generated_rows_are_those_of_single_prompts(batch_size, dtype):  # ZO-4
    model = llama(generation={"pad_token_id": 0}, eos_token_id=17)
    pred = frame_of(PROMPTS, dtype).infer.predict(
        model,
        columns="ids",
        method="generate",
        call_kwargs={"max_new_tokens": 12, "do_sample": False},
        meta={"out": LISTS},
        batch_size=batch_size,
    )
    expected = [alone(model, ids, max_new_tokens=12) for ids in PROMPTS]
    assert len({len(row) for row in expected}) > 1
    assert [list(row) for row in pred["out"].compute()] == expected


@pytest.mark.parametrize(
    "given",
    [
        {"eos_token_id": [17, 21]},
        {"eos_token_id": None},
        {"generation_config": transformers.GenerationConfig(eos_token_id=21)},
        {"max_length": 8},
        {"repetition_penalty": 5.0},
        {"num_beams": 3},
    ],
    ids=str,
)
def test_settings_of_generate_hold_for_each_row(given):
    model = llama(generation={"pad_token_id": 17}, eos_token_id=17)
    options = given if "max_length" in given else {"max_new_tokens": 9, **given}
    pred = frame_of(PROMPTS).infer.predict(
        model,
        columns="ids",
        method="generate",
        call_kwargs=options,
        meta={"out": LISTS},
    )
    expected = [alone(model, ids, **options) for ids in PROMPTS]
    assert [list(row) for row in pred["out"].compute()] == expected


@pytest.mark.parametrize("dtype", [LISTS, pd.ArrowDtype(pa.list_(pa.int64(), 4))])
def test_a_padding_token_inside_a_prompt_is_what_it_is_alone(dtype):
    model = llama(pad_token_id=3, eos_token_id=17)
    ids = [[5, 6, 7, 3], [3, 9, 3, 10]] + [[2], [4, 4, 4]] * (dtype == LISTS)
    pred = frame_of(ids, dtype).infer.predict(
        model, columns="ids", method="generate", call_kwargs={"max_new_tokens": 12}
    )
    expected = [alone(model, row, max_new_tokens=12) for row in ids]
    assert [list(row) for row in pred["prediction"].compute()] == expected


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BartForConditionalGeneration", "BartConfig"),
        ("T5ForConditionalGeneration", "T5Config"),
    ],
)
def test_encoder_decoders_are_padded_on_the_right(kind, config):
    sizes = {"d_model": 16, "vocab_size": 40, "num_layers": 1, "encoder_layers": 1}
    sizes |= {"decoder_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    changes = {"forced_eos_token_id": None, "decoder_start_token_id": 2}
    model = made(kind, getattr(transformers, config)(**sizes), **changes)
    # The start token is an end, too, and so is what the first row says fourth.
    fourth = alone(model, PROMPTS[0], max_new_tokens=4, eos_token_id=None)[4]
    options = {"max_new_tokens": 9, "eos_token_id": [2, fourth]}
    pred = frame_of(PROMPTS).infer.predict(
        model,
        columns="ids",
        method="generate",
        call_kwargs=options,
        meta={"out": LISTS},
    )
    expected = [alone(model, ids, **options) for ids in PROMPTS]
    assert [list(row) for row in pred["out"].compute()] == expected


def test_generated_tokens_are_promised_without_meta():
    model = llama(pad_token_id=3)
    pred = frame_of(PROMPTS).infer.predict(
        model, columns="ids", method="generate", call_kwargs={"max_new_tokens": 3}
    )
    assert repr(pred.dtypes["prediction"]) == "tensor[int64, (None,)]"
    expected = [alone(model, ids, max_new_tokens=3) for ids in PROMPTS]
    assert [list(row) for row in pred["prediction"].compute()] == expected


def test_texts_are_generated_from_as_alone(minilm):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(minilm))
    assert tokenizer.padding_side == "right"
    model = llama(vocab_size=30522, pad_token_id=0)
    texts = ["a cat", "the quick brown fox jumps over the lazy dog", "dask", ""]
    pred = dd.from_pandas(pd.DataFrame({"text": texts}), npartitions=1).infer.predict(
        model,
        columns="text",
        tokenizer=tokenizer,
        method="generate",
        call_kwargs={"max_new_tokens": 5},
        meta={"out": LISTS},
    )
    expected = [
        alone(model, tokenizer(t)["input_ids"], max_new_tokens=5) for t in texts
    ]
    assert [list(row) for row in pred["out"].compute()] == expected


def rows_of(model, ids, name):
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row]))[name][0].numpy() for row in ids]


@pytest.mark.parametrize("pad", [3, None])
@pytest.mark.parametrize("npartitions", [1, 2])
def test_classifiers_of_decoders_find_their_last_token(pad, npartitions):
    model = llama("LlamaForSequenceClassification", pad_token_id=pad)
    ddf = frame_of(PROMPTS, npartitions=npartitions)
    pred = ddf.infer.predict(model, columns="ids")
    found = pred["logits"].infer.to_numpy()
    np.testing.assert_allclose(found, rows_of(model, PROMPTS, "logits"), atol=1e-6)


def test_the_padding_token_of_a_text_config_counts():
    text = transformers.LlamaConfig(**SMALL, pad_token_id=3)

    class Config(transformers.PretrainedConfig):
        def get_text_config(self, **kwargs):
            return text

    model = llama("LlamaForSequenceClassification", pad_token_id=3)
    config, model.config = model.config, Config()
    model.config.num_labels = 2
    pred = frame_of(PROMPTS).infer.predict(
        model, columns="ids", meta={"logits": LOGITS}
    )
    found = pred["logits"].infer.to_numpy()
    model.config = config
    np.testing.assert_allclose(found, rows_of(model, PROMPTS, "logits"), atol=1e-6)


LOGITS = "tensor[float32, (2,)]"


class Sums(torch.nn.Module):
    """Names its mask, and takes anything else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Embedding(40, 4)

    def forward(self, input_ids, attention_mask, **kwargs):
        return (self.layer(input_ids) * attention_mask[..., None]).sum(1)


@pytest.mark.parametrize("dtype", [LISTS, object])
def test_a_model_that_names_its_mask_takes_ids_of_any_length(dtype):
    model = Sums()
    pred = frame_of(PROMPTS, dtype).infer.predict(model, columns="ids")
    assert repr(pred.dtypes["prediction"]) == "tensor[float32, (4,)]"
    with torch.no_grad():
        expected = [model.layer(torch.tensor(row)).sum(0).numpy() for row in PROMPTS]
    found = pred["prediction"].infer.to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [LISTS, object])
def test_outputs_of_tokens_are_known_before_their_lengths(dtype):
    model = llama("LlamaModel", pad_token_id=3)
    pred = frame_of(PROMPTS, dtype).infer.predict(model, columns="ids")
    assert repr(pred.dtypes["last_hidden_state"]) == "tensor[float32, (None, 16)]"
    expected = rows_of(model, PROMPTS, "last_hidden_state")
    for found, right in zip(pred["last_hidden_state"].compute(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


def test_outputs_that_follow_the_lengths_otherwise_ask_for_meta():
    class Shifted(Sums):
        def forward(self, input_ids, attention_mask):
            return self.layer(input_ids)[:, 1:]

    with pytest.raises(OutputError, match=r"depends on the whole batch.*meta="):
        frame_of(PROMPTS).infer.predict(Shifted(), columns="ids")


def test_a_model_without_a_mask_names_preprocess():
    class Bag(Sums):
        def forward(self, ids):
            return self.layer(ids).sum(1)

    pred = frame_of(PROMPTS).infer.predict(Bag(), columns="ids")
    with pytest.raises(InputError, match=r'"ids": row 1 .*preprocess='):
        pred.compute()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_cut_where_the_mask_of_preprocess_has_it(side):  # row 9
    class Tokens(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids * 10

    def padded(frame):
        width = max(map(len, frame["ids"])) + 1
        ids = torch.zeros(len(frame), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(frame["ids"]):
            at = slice(len(row)) if side == "right" else slice(width - len(row), width)
            ids[k, at], mask[k, at] = torch.tensor(list(row)), 1
        return {"input_ids": ids, "attention_mask": mask}

    pred = frame_of(PROMPTS).infer.predict(
        Tokens(), columns="ids", preprocess=padded, meta={"out": LISTS}, batch_size=3
    )
    expected = [[10 * token for token in row] for row in PROMPTS]
    assert [list(row) for row in pred["out"].compute()] == expected


class Three(torch.nn.Module):
    widths: ClassVar[list[int]] = []

    def forward(self, input_ids, attention_mask):
        self.widths.append(input_ids.shape[1])
        if input_ids.shape[1] != 3:
            raise ValueError("three tokens")
        return input_ids * 10


def test_a_model_of_one_length_is_asked_once_a_partition_for_another():
    def padded(texts):
        ids = np.zeros((len(texts), 3), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = 1
        return {"input_ids": ids, "attention_mask": ids}

    texts = pd.DataFrame({"text": ["aaa", "a", "aa"] * 4})
    pred = dd.from_pandas(texts, npartitions=1).infer.predict(
        Three(), columns="text", tokenizer=padded, meta={"out": object}, batch_size=3
    )
    result = pred["out"].compute(scheduler="sync")
    assert [len(row) for row in result] == [3] * 12
    assert sum(width != 3 for width in Three.widths) == 1
