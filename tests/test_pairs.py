"""Text pairs, objects of sentence-transformers, and lists of unequal length."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer import InputError

transformers = pytest.importorskip("transformers")

FIRST = ["a cat", "the quick brown fox jumps over the lazy dog", "", "dask", "bar"]
SECOND = ["a dog", "short", "pandas and numpy walk into a bar", "a", "word " * 300]


@pytest.fixture
def ddf():
    frame = pd.DataFrame({"first": FIRST, "second": SECOND})
    return dd.from_pandas(frame, npartitions=2)


@pytest.fixture
def sync():
    with dask.config.set({"scheduler": "sync", "dataframe.convert-string": False}):
        yield


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return transformers.AutoTokenizer.from_pretrained(str(minilm))


def classifier(labels):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=30522, intermediate_size=8, num_labels=labels, **sizes
    )
    return transformers.BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pair_of_columns_goes_into_the_tokenizer_as_a_pair(
    ddf, sync, tokenizer, batch_size
):
    model = classifier(2)
    pred = ddf.infer.predict(
        model, columns=("first", "second"), tokenizer=tokenizer, batch_size=batch_size
    )
    expected = []
    for pair in zip(FIRST, SECOND, strict=True):
        tokens = tokenizer(*pair, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            expected.append(model(**tokens).logits[0].numpy())
    np.testing.assert_allclose(pred["logits"].infer.to_numpy(), expected, atol=1e-6)


def test_a_callable_tokenizer_gets_both_texts_of_a_pair(ddf, sync):
    def lengths(first, second):
        return {"x": np.array([list(map(len, first)), list(map(len, second))]).T}

    pred = ddf.infer.predict(
        lambda x: x[:, 0] - x[:, 1],
        columns=("first", "second"),
        tokenizer=lengths,
        meta="int64",
    )
    expected = [len(a) - len(b) for a, b in zip(FIRST, SECOND, strict=True)]
    assert pred["prediction"].compute().tolist() == expected


def test_pairs_that_preprocess_changes_are_pairs(ddf, sync, tokenizer):
    model = classifier(2)
    options = {"columns": ("first", "second"), "tokenizer": tokenizer}
    plain = ddf.infer.predict(model, **options)["logits"].infer.to_numpy()
    same = ddf.infer.predict(model, preprocess=lambda f: f, **options)
    np.testing.assert_allclose(same["logits"].infer.to_numpy(), plain, atol=1e-6)


def test_three_texts_are_no_pair(ddf, sync, tokenizer):
    third = ddf.assign(third=ddf["first"])
    with pytest.raises(InputError, match="one column of text or a pair"):
        third.infer.predict(
            classifier(2), columns=("first", "second", "third"), tokenizer=tokenizer
        )


@pytest.mark.parametrize("prompt", [False, True])
def test_a_sentence_transformer_object_encodes(ddf, sync, minilm, prompt):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(minilm), device="cpu")
    if prompt:
        model.prompts, model.default_prompt_name = {"query": "query: "}, "query"
        model.truncate_dim = 7
    pred = ddf.infer.predict(model, columns="first", output="vector")
    again = ddf.infer.predict(model, columns="first", output="vector")
    assert pred._name == again._name
    found = pred["vector"].infer.to_numpy()
    np.testing.assert_allclose(found, model.encode(FIRST, batch_size=1), atol=2e-6)


def test_a_pooling_leaves_out_the_prompt(ddf, sync, minilm, tmp_path):
    """The directory gave the embeddings of all tokens, the prompt's among them."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(minilm), device="cpu")
    model.prompts, model.default_prompt_name = {"query": "query: "}, "query"
    model[1].include_prompt = False
    model.save(str(tmp_path))
    expected = model.encode(FIRST, batch_size=1)
    pred = ddf.infer.predict(tmp_path, columns="first", output="vector")
    found = pred["vector"].infer.to_numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.fixture
def cross_encoder(tmp_path, tokenizer):
    library = pytest.importorskip("sentence_transformers")

    def build(labels):
        classifier(labels).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return library.CrossEncoder(str(tmp_path), device="cpu")

    return build


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_object_scores_pairs(ddf, sync, cross_encoder, labels):
    model = cross_encoder(labels)
    pred = ddf.infer.predict(model, columns=("first", "second"))["prediction"]
    found = np.stack(list(pred.compute()))
    expected = model.predict(list(zip(FIRST, SECOND, strict=True)), batch_size=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cross_encoder_travels(client, ddf, cross_encoder):
    model = cross_encoder(1)
    expected = model.predict(list(zip(FIRST, SECOND, strict=True)), batch_size=1)
    pred = ddf.infer.predict(model, columns=("first", "second"))
    found = pred["prediction"].compute().to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


SOUNDS = [[0.5, 1.0, 2.0], [4.0], [], [1.0, 1.0]]


@pytest.mark.parametrize("dtype", [object, pd.ArrowDtype(pa.list_(pa.float32()))])
def test_lists_of_unequal_length_are_a_list_of_arrays(sync, dtype):  # ZO-7
    def loudness(sounds):
        assert isinstance(sounds, list)
        return np.array([np.asarray(sound).sum() for sound in sounds])

    frame = pd.DataFrame({"sound": pd.Series(SOUNDS, dtype=dtype)})
    pred = dd.from_pandas(frame, npartitions=1).infer.predict(
        loudness, columns="sound", meta="float64", batch_size=3
    )
    assert pred["prediction"].compute().tolist() == [3.5, 4.0, 0.0, 2.0]


def test_a_missing_list_among_unequal_ones_fails_alone(sync):
    frame = pd.DataFrame({"sound": [[1.0], None, [2.0, 3.0]]})
    pred = dd.from_pandas(frame, npartitions=1).infer.predict(
        lambda sounds: np.array([sound.sum() for sound in sounds]),
        columns="sound",
        meta="float64",
        on_error="quarantine",
    )
    found = pred.compute()
    assert found["prediction"].fillna(-1).tolist() == [1.0, -1.0, 5.0]
    assert "row 1 is missing" in found["infer_error"][1]
