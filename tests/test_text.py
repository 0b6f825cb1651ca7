"""Text through real tokenizers and the real MiniLM: sections 2 to 4 for text."""

import json

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer import InputError, Layout, ModelLoadError
from tests.oracle.texts import hugging_face

transformers = pytest.importorskip("transformers")

TEXTS = [
    "a cat",
    "the quick brown fox jumps over the lazy dog " * 4,
    "",
    "dask",
    "pandas and numpy walk into a bar",
    "one two three four five six seven eight nine ten eleven twelve",
    "short",
    "a somewhat longer sentence about very little at all",
] * 3


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def ddf():
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    return dd.from_pandas(frame, npartitions=2)


@pytest.fixture(scope="module")
def reference(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    return model.encode(TEXTS, batch_size=1)


@pytest.fixture
def tokenizer(minilm):
    return transformers.AutoTokenizer.from_pretrained(str(minilm))


def test_a_sentence_transformers_directory_is_one_line(ddf, minilm, reference):
    pred = ddf.infer.predict(str(minilm), columns="text", output="vector")
    vectors = pred["vector"].infer.to_numpy()
    assert vectors.dtype == "float32"
    np.testing.assert_allclose(vectors, reference, atol=2e-6)


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_tokens": 30}, {"batch_tokens": None}]
)
def test_vectors_do_not_depend_on_batches(ddf, minilm, reference, options):  # RY-5
    pred = ddf.infer.predict(str(minilm), columns="text", output="v", **options)
    np.testing.assert_allclose(pred["v"].infer.to_numpy(), reference, atol=2e-6)


def bert(**kwargs):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=30522, **kwargs,
    )  # fmt: skip
    return transformers.BertModel(config)


def test_a_module_with_a_tokenizer(ddf, tokenizer):
    model = bert()
    pred = ddf.infer.predict(
        model, columns="text", tokenizer=tokenizer, output={"pooler_output": "p"}
    )
    one = tokenizer(TEXTS[4], return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval()(**one).pooler_output[0].numpy()
    np.testing.assert_allclose(pred["p"].infer.to_numpy()[4], expected, atol=1e-6)


def test_a_padded_axis_is_trimmed_to_each_row(ddf, tokenizer):  # section 4
    pred = ddf.infer.predict(
        bert(), columns="text", tokenizer=tokenizer, output={"last_hidden_state": "h"}
    )
    rows = pred["h"].compute()
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert [len(row) for row in rows] == lengths
    assert rows.iloc[0].shape[1] == 8


def test_padding_side_is_the_tokenizers(ddf, tokenizer):  # CF-01
    tokenizer.padding_side = "left"

    class LastToken(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids[:, -1] * attention_mask[:, -1]

    pred = ddf.infer.predict(LastToken(), columns="text", tokenizer=tokenizer)
    assert set(pred["prediction"].compute()) == {tokenizer.sep_token_id}


def test_batches_are_clipped_to_their_longest_row(ddf, tokenizer):  # CF-02
    class Width(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return attention_mask.sum(dim=1) * 0 + input_ids.shape[1]

    pred = ddf.infer.predict(Width(), columns="text", tokenizer=tokenizer, batch_size=1)
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert pred["prediction"].compute().tolist() == lengths


def test_strings_come_back_in_row_order(ddf, tokenizer):  # CF-04
    class Ids(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids

    def decode(output, frame, inputs):
        return tokenizer.batch_decode(output, skip_special_tokens=True)

    pred = ddf.infer.predict(
        Ids(),
        columns="text",
        tokenizer=tokenizer,
        postprocess=decode,
        output="decoded",
        meta={"decoded": "string"},
        batch_tokens=40,
    )
    expected = [
        tokenizer.decode(tokenizer(t)["input_ids"], skip_special_tokens=True)
        for t in TEXTS
    ]
    assert pred["decoded"].compute().tolist() == expected


def test_long_texts_are_truncated_and_counted(minilm, caplog):  # section 7
    frame = pd.DataFrame({"text": ["word " * 400, "short"]})
    ddf = dd.from_pandas(frame, npartitions=1)
    ddf.infer.predict(str(minilm), columns="text").compute()
    assert "1 of 2 texts were truncated" in caplog.text


def test_a_callable_tokenizer(ddf):
    def letters(texts):
        return {"input_ids": [[ord(c) % 50 for c in t] or [0] for t in texts]}

    class Count(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return attention_mask.sum(dim=1)

    pred = ddf.infer.predict(Count(), columns="text", tokenizer=letters)
    assert pred["prediction"].compute().tolist() == [max(1, len(t)) for t in TEXTS]


def test_a_callable_model_gets_keyword_arrays(ddf, tokenizer):
    def count(input_ids, attention_mask):
        assert isinstance(input_ids, np.ndarray)
        return attention_mask.sum(axis=1)

    pred = ddf.infer.predict(
        count, columns="text", tokenizer=tokenizer, meta={"n": "int64"}
    )
    assert pred["n"].compute().tolist() == [
        len(ids) for ids in tokenizer(TEXTS)["input_ids"]
    ]


def test_a_missing_text_names_its_row(minilm):
    ddf = dd.from_pandas(pd.DataFrame({"text": ["a", None, "b"]}), npartitions=1)
    with pytest.raises(InputError, match=r'"text".*1'):
        ddf.infer.predict(str(minilm), columns="text").compute()


def test_two_tokenizers_in_one_graph(ddf, tokenizer):  # DI-22
    def letters(texts):
        return {"input_ids": [list(map(ord, t)) or [0] for t in texts]}

    class Count(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return attention_mask.sum(dim=1)

    pred = ddf.infer.predict(Count(), columns="text", tokenizer=letters, output="c")
    pred = pred.infer.predict(Count(), columns="text", tokenizer=tokenizer, output="w")
    result = pred.compute()
    assert result.c.tolist() == [max(1, len(t)) for t in TEXTS]
    assert result.w.tolist() == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]


class Ids(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        return (input_ids * attention_mask).sum(dim=1)


def test_another_tokenizer_in_the_same_directory_is_seen(ddf, tokenizer, tmp_path):
    def predict():
        pred = ddf.infer.predict(Ids(), columns="text", tokenizer=str(tmp_path))
        return pred.compute().prediction.tolist()

    tokenizer.save_pretrained(tmp_path)
    first = predict()
    assert predict() == first
    file = tmp_path / "tokenizer.json"
    words = json.loads(file.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["the"], vocabulary["cat"] = vocabulary["cat"], vocabulary["the"]
    file.write_text(json.dumps(words))
    assert predict() != first


def test_what_is_no_tokenizer_is_refused_at_the_call(ddf, tmp_path):
    def call(tokenizer):
        ddf.infer.predict(Ids(), columns="text", tokenizer=tokenizer)

    with pytest.raises(InputError, match="tokenizer=3: pass a Hugging Face"):
        call(3)
    with pytest.raises(ModelLoadError, match=r"tokenizer: there is no .*snapshot_down"):
        call("bert-base-uncased")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="is a file; pass its directory"):
        call(tmp_path / "tokenizer.json")


def test_a_list_column_of_ids_needs_no_tokenizer():
    ids = [[1, 2, 3], [4], [5, 6]]
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"input_ids": ids}), npartitions=1)

    class Sum(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return (input_ids * attention_mask).sum(dim=1)

    pred = ddf.infer.predict(
        Sum(), columns={"input_ids": "input_ids"}, meta={"s": "int64"}
    )
    assert pred["s"].compute().tolist() == [6, 4, 11]


class Widths(torch.nn.Module):
    """Sum of each row's ids, and how wide its batch was."""

    def forward(self, input_ids, attention_mask):
        width = torch.full((len(input_ids),), input_ids.shape[1])
        return {"sum": (input_ids * attention_mask).sum(dim=1), "width": width}


WIDTHS = {"sum": "int64", "width": "int64"}


def test_ragged_ids_of_a_parquet_file_are_batched_by_length(tmp_path):  # RY-5
    random = np.random.default_rng(0)
    lengths = random.choice([2, 3, 200], 120)
    ids = [random.integers(1, 9, length) for length in lengths]
    pd.DataFrame({"ids": ids}).to_parquet(tmp_path / "ids.parquet")
    ddf = dd.read_parquet(tmp_path / "ids.parquet")
    pred = ddf.infer.predict(
        Widths(), columns={"input_ids": "ids"}, keep=False, meta=WIDTHS
    )
    result = pred.compute()
    assert result["sum"].tolist() == [row.sum() for row in ids]
    # No short row is padded to the length of a long one.
    assert (result["width"][lengths < 10] <= 3).all()


@pytest.mark.parametrize("budget", ["auto", 64, None])
def test_a_budget_of_tokens_changes_no_prediction(budget):
    random = np.random.default_rng(0)
    ids = [random.integers(1, 9, length).tolist() for length in range(1, 60)]
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"ids": ids}), npartitions=2)
    pred = ddf.infer.predict(
        Widths(),
        columns={"input_ids": "ids"},
        batch_tokens=budget,
        keep=False,
        meta=WIDTHS,
    )
    result = pred.compute()
    assert result["sum"].tolist() == [sum(row) for row in ids]
    assert budget != 64 or result["width"].tolist()[:5] != [59] * 5


@pytest.mark.parametrize("given", ["the directory's", "named by its directory"])
def test_layer_groups_take_what_the_tokenizer_of_the_directory_returns(tmp_path, given):
    """A BERT takes token types, which this tokenizer does not return."""
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(tmp_path)
    names = ("input_ids", "attention_mask")
    hugging_face("right", "[PAD]", names).save_pretrained(tmp_path)
    ddf = dd.from_pandas(pd.DataFrame({"text": ["a b", "c", "a b c a"]}), npartitions=1)
    tokenizer = None if given == "the directory's" else str(tmp_path)
    options = {"columns": "text", "keep": False, "tokenizer": tokenizer}
    options["output"] = {"pooler_output": "vector"}
    whole = ddf.infer.predict(str(tmp_path), **options).compute()
    layout = Layout(sweep=True, stages=2)
    swept = ddf.infer.predict(str(tmp_path), parallel=layout, **options).compute()
    np.testing.assert_allclose(
        swept.vector.infer.to_numpy(), whole.vector.infer.to_numpy(), atol=1e-6
    )


def test_a_function_as_tokenizer_says_for_which_arguments_to_split(ddf, tokenizer):
    def tokenize(texts):
        made = tokenizer(texts, padding=True, return_tensors="np")
        return {key: made[key] for key in ("input_ids", "attention_mask")}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(len(tokenizer), 4)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            tokens = self.embed(input_ids) * attention_mask[..., None]
            if token_type_ids is not None:
                tokens = tokens + token_type_ids[..., None]
            return self.head(tokens.sum(1))

    model = Model()
    options = {"columns": "text", "tokenizer": tokenize, "keep": False}
    whole = ddf.infer.predict(model, **options).compute()
    options["parallel"] = Layout(sweep=True, stages=2)
    with pytest.raises(InputError, match="model_input_names"):
        ddf.infer.predict(model, **options).compute()
    tokenize.model_input_names = ["input_ids", "attention_mask"]
    swept = ddf.infer.predict(model, **options).compute()
    got, expected = (each["prediction"].infer.to_numpy() for each in (swept, whole))
    np.testing.assert_allclose(got, expected, atol=1e-5)
