"""Records that are numbers, and openers of them."""

import pathlib

import numpy as np
import tensorflow as tf

from elasticdl.core import streams
from elasticdl.data import pipeline, recordio

RECORDS = 90
PLAN = streams.Plan([60, RECORDS - 60], slice_records=25, streams=3, seed=4)

# Functions that are traced must say themselves that AutoGraph is not for them: lambdas of one line
# are nothing that it can read.
plain = tf.autograph.experimental.do_not_convert


def number(record):
    return tf.strings.to_number(record, tf.float32)


def numbers(dataset):
    return dataset.map(number)


def structured(dataset):
    def parse(record):
        x = number(record)
        features = {"text": record, "pair": (x, [x, -x])}
        return features, tf.cast(x, tf.int64) % 2, tf.exp(-x)

    return dataset.map(parse).shuffle(8)


def ragged(dataset):
    def parse(record):
        count = tf.cast(number(record), tf.int32) % 4
        return tf.RaggedTensor.from_row_lengths(tf.range(count), [count])

    return dataset.map(parse)


def sparse(dataset):
    def parse(record):
        at = tf.cast(number(record), tf.int64) % 5
        return {"one": tf.sparse.SparseTensor([[at]], [1.0], [5])}

    return dataset.map(parse)


def written(directory: pathlib.Path) -> None:
    """60 records in one file, 30 in another: the numbers from 0 on."""
    for file, (begin, end) in enumerate([(0, 60), (60, RECORDS)]):
        with recordio.Writer(str(directory / f"{file}.recordio")) as writer:
            for n in range(begin, end):
                writer.write(str(n).encode())


def damaged(files, tmp_path):
    """The same files, the last chunk of the second one damaged."""
    content = bytearray(pathlib.Path(files[1]).read_bytes())
    content[-5] ^= 0x55
    path = tmp_path / "damaged.recordio"
    path.write_bytes(content)
    return [files[0], str(path)]


_openers = {}


def opened(files, function, seed=5):
    """An opener, the same one for the same function: none keeps anything from slice to slice."""
    key = tuple(files), function, seed
    if key not in _openers:
        opener = pipeline.Opener(files, plain(function), seed)
        opener.sample(PLAN)
        _openers[key] = opener
    return _openers[key]


def untraced(opener):
    """The same opener, which calls the user's function for each slice."""
    other = pipeline.Opener(opener.files, opener._create_dataset, opener._seed)
    other.block = opener.block
    return other


def rows(components, elements):
    """Each element's leaves as plain Python values."""

    def values(component):
        if isinstance(component, tf.SparseTensor):
            component = tf.sparse.to_dense(component)
        if isinstance(component, tf.RaggedTensor):
            return component.to_list()
        return np.asarray(component).tolist()

    columns = [values(component) for component in components]
    return [tuple(column[n] for column in columns) for n in range(elements)]


def elements_of(blocks):
    return [row for block in blocks for row in rows(block.components, block.elements)]
