"""Probabilities that scikit-learn's ONNX exports zip with the labels of their classes.

A ``ZipMap`` node makes a list of ``{label: probability}`` of an ``(n, k)`` tensor. Here
it becomes that tensor again, in the order of the labels. How many there are only the
node's attributes tell, which ONNX Runtime does not show: they are read from the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Fields of ONNX's messages, by their numbers (onnx.proto).
_GRAPH, _NODE = 7, 1
_OUTPUT, _OPERATOR, _ATTRIBUTE = 2, 4, 5
_INTS, _STRINGS = 8, 9


def unzipped(output: Any) -> Any:
    """Return a list of ``{label: number}`` as an array, all else as it is."""
    if not isinstance(output, list) or not output or not isinstance(output[0], dict):
        return output
    labels = sorted(output[0])
    rows = [[row[label] for label in labels] for row in output]
    return np.array(rows, dtype=np.float32)


def zipped_widths(path: str | Path) -> dict[str, int]:
    """Return how many labels each output of a ``ZipMap`` node has, by its name."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=1) as data:
        return dict(_widths(data))


def _widths(data: mmap.mmap) -> Iterator[tuple[str, int]]:
    for _, graph in _fields(data, (0, len(data)), _GRAPH):
        for _, node in _fields(data, graph, _NODE):
            kinds = [data[slice(*at)] for _, at in _fields(data, node, _OPERATOR)]
            if kinds == [b"ZipMap"]:
                ((_, name), *_) = _fields(data, node, _OUTPUT)
                yield data[slice(*name)].decode(), _labels(data, node)


def _labels(data: mmap.mmap, node: tuple[int, int]) -> int:
    """Count the labels that a node's attributes list."""
    count = 0
    for _, attribute in _fields(data, node, _ATTRIBUTE):
        count += len(list(_fields(data, attribute, _STRINGS)))
        for packed, (start, stop) in _fields(data, attribute, _INTS):
            ends = sum(byte < 128 for byte in data[start:stop])
            count += ends if packed else 1
    return count


def _fields(
    data: mmap.mmap, within: tuple[int, int], wanted: int
) -> Iterator[tuple[bool, tuple[int, int]]]:
    """Yield where the values of a field stand in a message of protocol buffers.

    With each comes whether it is of a length of its own: text, a message, a packed
    list. Nothing else is read, so weights inside the file cost nothing.
    """
    place, stop = within
    while place < stop:
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        start = place
        if kind == 0:
            _, place = _varint(data, place)
        elif kind == 2:
            size, start = _varint(data, place)
            place = start + size
        else:
            place += {1: 8, 5: 4}[kind]
        if number == wanted:
            yield kind == 2, (start, place)


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """Return a number of any length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
