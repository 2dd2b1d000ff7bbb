"""What a dataset or a metric is made for: training, evaluation or prediction."""

import enum


class Mode(enum.StrEnum):
    """What a dataset or a metric is made for."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    PREDICTION = "prediction"
