"""A model whose parts are what the test gives."""

from elasticdl import ElasticDLSpec


class Given(ElasticDLSpec):
    def __init__(self, context=None, model=None, optimizer=None, loss=None, metrics=None):
        super().__init__(context=context)
        self._model = model
        self._optimizer = optimizer
        self._loss = loss
        self._metrics = metrics

    def create_model(self):
        return self._model()

    def create_optimizer(self):
        return self._optimizer()

    def create_loss(self, outputs, labels):
        return self._loss(outputs, labels)

    def create_metrics(self, mode, outputs, labels):
        return self._metrics(mode, outputs, labels) if self._metrics else {}

    def create_dataset(self, dataset, mode):
        raise NotImplementedError
