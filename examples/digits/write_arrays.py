"""Writes scikit-learn's handwritten digits as two NPZ files: `python write_arrays.py DIRECTORY`."""

import pathlib
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_DIGITS = 297


def main(directory: pathlib.Path) -> None:
    digits = load_digits()
    images = digits.images.astype(np.float32)
    labels = digits.target.astype(np.int64).reshape(-1, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_DIGITS, random_state=0, stratify=labels
    )
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "train.npz", image=train_images, label=train_labels)
    np.savez(directory / "test.npz", image=test_images, label=test_labels)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
