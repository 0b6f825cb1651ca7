"""Texts become tokens once; batches are padded to their own longest row."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.batch.text.batch_padding import pad, real_tokens
from dask_infer.batch.text.tokenize import flat_rows, longest_text, tokenize
from dask_infer.errors import InputError
from dask_infer.spec.token_rules import TokenRules

TEXTS = ["a b c", "", "a", "c b a c b a", "b b"]


def words(*, side="right", limit=None, padding="[PAD]"):
    """Return a small fast tokenizer: one token a word, and two around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4, "b": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    options = {} if limit is None else {"model_max_length": limit}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=padding,
        padding_side=side,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **options,
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 5), np.array([4, 0, 1])])
# CF-01, 02
def test_batches_are_what_the_tokenizer_itself_pads(side, rows):
    tokenizer = words(side=side)
    tokens = tokenize([TEXTS], tokenizer, TokenRules())
    batch, padding = tokens.batch(rows)
    expected = tokenizer(
        np.array(TEXTS, object)[rows].tolist(), padding=True, return_tensors="np"
    )
    assert batch.keys() == expected.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], expected[key])
        assert batch[key].dtype == np.int64
    assert padding.width == expected["input_ids"].shape[1]
    assert tokens.side == side
    assert tokens.lengths.tolist() == [5, 2, 3, 8, 4]


def test_truncated_texts_are_counted():
    tokens = tokenize([TEXTS], words(limit=5), TokenRules())
    assert tokens.lengths.tolist() == [5, 2, 3, 5, 4]
    assert tokens.truncated == 1
    assert tokenize([TEXTS], words(), TokenRules()).truncated == 0


@pytest.mark.parametrize("limit", [None, 512])
def test_longest_text(limit):
    assert longest_text(words(limit=limit)) == limit


def test_only_what_the_model_takes():
    tokens = tokenize([TEXTS], words(), TokenRules(frozenset({"input_ids"})))
    batch, _ = tokens.batch(slice(0, 2))
    assert batch.keys() == {"input_ids"}
    with pytest.raises(InputError, match='none of the tokenizer\'s outputs, only "x"'):
        tokenize([TEXTS], words(), TokenRules(frozenset({"x"})))


def test_without_a_padding_token_the_mask_shows_it():
    tokens = tokenize([["a", "a a"]], words(padding=None), TokenRules())
    batch, _ = tokens.batch(slice(None))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


# DI-11
def test_no_texts_have_the_same_keys():
    batch, _ = tokenize([[]], words(), TokenRules()).batch(slice(None))
    assert (
        batch.keys()
        == tokenize([TEXTS], words(), TokenRules()).batch(slice(None))[0].keys()
    )
    assert len(batch["input_ids"]) == 0


def test_many_texts_are_tokenised_in_chunks(monkeypatch):
    whole = tokenize([TEXTS], words(), TokenRules()).batch(slice(None))[0]
    monkeypatch.setattr("dask_infer.batch.text.tokenize.CHUNK", 2)
    for key, value in (
        tokenize([TEXTS], words(), TokenRules()).batch(slice(None))[0].items()
    ):
        np.testing.assert_array_equal(value, whole[key])


def test_threads_share_a_tokenizer():
    tokenizer, failed = words(), []

    def work(limit):
        mine = copy.copy(tokenizer)  # its Rust part is the same
        mine.model_max_length = limit
        try:
            for _ in range(20):
                tokens = tokenize([["a " * 50] * 20], mine, TokenRules())
                assert (tokens.lengths == limit).all()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (8, 16, 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def letters(texts):
    return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def test_lists_of_lists_are_padded_and_masked():
    tokens = tokenize([["ab", "c", ""]], letters, TokenRules())
    batch, padding = tokens.batch(slice(None))
    assert batch["input_ids"].tolist() == [[97, 98], [99, 0], [0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert padding.width == 2
    assert tokens.lengths.tolist() == [2, 1, 0]
    assert tokens.batch(np.array([2]))[0]["input_ids"].tolist() == [[0]]


def test_no_mask_for_a_model_that_takes_none():
    tokens = tokenize([["ab", "c"]], letters, TokenRules(frozenset({"input_ids"})))
    assert tokens.batch(slice(None))[0].keys() == {"input_ids"}


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_arrays_without_a_mask_stay_as_they_are(kind):
    def tokenizer(texts):
        return {"ids": kind([[len(text), 7] for text in texts])}

    tokens = tokenize([["ab", "c"]], tokenizer, TokenRules())
    batch, padding = tokens.batch(np.array([1, 0]))
    assert batch["ids"].tolist() == [[1, 7], [2, 7]]
    assert (padding.lengths is None) == (kind is not list)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_callable_that_pads_to_the_longest_is_narrowed_to_each_batch(side):
    hugging = words(side=side)
    tokens = tokenize(
        [TEXTS],
        lambda texts: dict(hugging(texts, padding=True, return_tensors="pt")),
        TokenRules(),
    )
    batch, padding = tokens.batch(slice(0, 3))
    expected = hugging(TEXTS[:3], padding=True, return_tensors="np")
    for key in expected:
        np.testing.assert_array_equal(batch[key], expected[key])
    assert padding.width == 5
    assert tokens.side == side


def test_a_callable_that_pads_to_a_fixed_length_is_left_alone():
    hugging = words()
    tokens = tokenize(
        [TEXTS],
        lambda texts: dict(hugging(texts, padding="max_length", max_length=12)),
        TokenRules(),
    )
    batch, padding = tokens.batch(slice(0, 2))
    assert batch["input_ids"].shape == (2, 12)
    assert padding.width == 12
    assert tokens.padded_lengths.tolist() == [12] * 5
    assert tokens.lengths.tolist() == [5, 2, 3, 8, 4]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda texts: [1, 2], "returned list, not a dict"),
        (lambda texts: {"ids": [[1]]}, 'returned 1 rows of "ids" for 5 texts'),
        (lambda texts: {"ids": np.zeros((4, 2))}, "returned 4 rows"),
        (lambda texts: {"ids": 3}, "returned 0 rows"),
    ],
)
def test_tokenizers_that_return_something_else(tokenizer, message):
    with pytest.raises(InputError, match=message):
        tokenize([TEXTS], tokenizer, TokenRules())


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_padding_keeps_every_token_on_its_side(rows):
    flat = flat_rows(rows)
    for side in ("left", "right"):
        block, mask = pad(flat, slice(None), side=side)
        real = [row[keep].tolist() for row, keep in zip(block, mask, strict=True)]
        assert real == rows
        assert (block[~mask] == 0).all()
        lengths = np.array([len(row) for row in rows])
        np.testing.assert_array_equal(mask, real_tokens(lengths, block.shape[1], side))
