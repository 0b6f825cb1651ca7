"""Models that let padding into other tokens: rows of equal length make a batch."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer import Layout

transformers = pytest.importorskip("transformers")

LISTS = pd.ArrowDtype(pa.list_(pa.int64()))
LENGTHS = [5, 9, 3, 5, 9, 5, 1, 3, 9, 9, 3]
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "embedding_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
KINDS = {
    "ConvBertForSequenceClassification": SMALL,
    "NystromformerForSequenceClassification": SMALL,
    "XLNetForSequenceClassification": {
        "vocab_size": 40,
        "d_model": 16,
        "n_layer": 2,
        "n_head": 2,
        "d_inner": 16,
    },
}


@pytest.fixture
def here():
    with dask.config.set(scheduler="sync"):
        yield


def build(name):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**KINDS[name])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    return model


def rows_of_ids(lengths=LENGTHS):
    random = np.random.default_rng(0)
    return [random.integers(5, 40, n).tolist() for n in lengths]


def frame_of(ids, npartitions=1):
    frame = pd.DataFrame({"ids": pd.Series(ids, dtype=LISTS)})
    return dd.from_pandas(frame, npartitions=npartitions)


def alone(model, ids):
    with torch.inference_mode():
        return [model(torch.tensor([row])).logits[0].numpy() for row in ids]


def same(pred, expected):
    found = pred["logits"].infer.to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_rows_among_others_are_what_they_are_alone(here, name):
    model, ids = build(name), rows_of_ids()
    for options in ({}, {"batch_size": 4}, {"batch_tokens": None}):
        pred = frame_of(ids).infer.predict(model, columns="ids", **options)
        same(pred, alone(model, ids))


def test_a_part_of_a_model_counts(here):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("ConvBertForSequenceClassification")

        def forward(self, input_ids, attention_mask):
            return {"logits": self.inner(input_ids, attention_mask).logits}

    model, ids = Wrapped(), rows_of_ids()
    pred = frame_of(ids).infer.predict(model, columns="ids")
    same(pred, alone(model.inner, ids))


class Counted(torch.nn.Module):
    shapes = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.inner = build("ConvBertForSequenceClassification")

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        return self.inner(input_ids, attention_mask).logits


def test_rows_of_equal_length_share_a_forward(here):
    ids = rows_of_ids()
    meta = {"logits": "tensor[float32, (2,)]"}
    pred = frame_of(ids).infer.predict(Counted(), columns="ids", meta=meta)
    same(pred, alone(Counted().inner, ids))
    assert sorted(Counted.shapes) == [(1, 1), (3, 3), (3, 5), (4, 9)]


def test_lists_that_preprocess_returns(here):
    model, ids = build("ConvBertForSequenceClassification"), rows_of_ids()

    def shorter(frame):
        return frame.assign(ids=[list(row)[:4] for row in frame["ids"]])

    pred = frame_of(ids).infer.predict(
        model,
        columns="ids",
        preprocess=shorter,
        meta={"logits": "tensor[float32, (2,)]"},
    )
    same(pred, alone(model, [row[:4] for row in ids]))


def test_a_missing_row_leaves_the_others_as_they_are_alone(here):
    model, ids = build("ConvBertForSequenceClassification"), rows_of_ids()
    given = [*ids[:4], None, *ids[4:]]
    pred = frame_of(given).infer.predict(model, columns="ids", on_error="null")
    found = pred["logits"].compute()
    assert found.isna().tolist() == [row is None for row in given]
    found = np.stack(list(found.dropna()))
    np.testing.assert_allclose(found, alone(model, ids), atol=1e-5)


class MaskedSums(torch.nn.Module):
    """Reads texts without a mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Embedding(31000, 4)

    def forward(self, input_ids):
        return {"logits": self.layer(input_ids).mean(1)}


def test_texts_of_a_model_that_takes_no_mask(here, minilm):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(minilm))
    texts = ["a cat", "the quick brown fox jumps over the lazy dog", "dask", "a dog"]
    ddf = dd.from_pandas(pd.DataFrame({"text": texts}), npartitions=1)
    model = MaskedSums()
    pred = ddf.infer.predict(model, columns="text", tokenizer=tokenizer)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    same(pred, [model(row)["logits"][0].detach().numpy() for row in ids])


@pytest.mark.parametrize("name", KINDS)
def test_on_a_cluster(client, name):
    model, ids = build(name), rows_of_ids()
    pred = frame_of(ids, npartitions=2).infer.predict(model, columns="ids")
    same(pred, alone(model, ids))


def test_in_two_stages(client):
    model, ids = build("ConvBertForSequenceClassification"), rows_of_ids()
    pred = frame_of(ids, npartitions=2).infer.predict(
        model, columns="ids", parallel=Layout(stages=2)
    )
    same(pred, alone(model, ids))


def test_prompts_of_consecutive_rows_are_generated_one_at_a_time(here):
    """`max_length` counts padding, and such batches are not cut by length."""
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=64,
        bos_token_id=48, eos_token_id=49, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    rows = [[5, 6], [7, 8, 9, 10, 3], [4], [11, 12, 13]]
    kwargs = {"max_length": 9, "do_sample": False}
    expected = [model.generate(torch.tensor([r]), **kwargs)[0].tolist() for r in rows]
    ids = pd.Series(rows, dtype=pd.ArrowDtype(pa.list_(pa.int64())), name="input_ids")
    pred = dd.from_pandas(ids.to_frame(), npartitions=1)["input_ids"].infer.predict(
        model, method="generate", call_kwargs=kwargs, row_wise=False
    )
    assert [list(map(int, row)) for row in pred.compute()] == expected
