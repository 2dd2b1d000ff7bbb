from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DT_FLOAT32: _ClassVar[TensorDtype]
    DT_FLOAT16: _ClassVar[TensorDtype]
    DT_BFLOAT16: _ClassVar[TensorDtype]
    DT_FLOAT64: _ClassVar[TensorDtype]
    DT_INT8: _ClassVar[TensorDtype]
    DT_INT16: _ClassVar[TensorDtype]
    DT_INT32: _ClassVar[TensorDtype]
    DT_INT64: _ClassVar[TensorDtype]
    DT_UINT8: _ClassVar[TensorDtype]
    DT_UINT16: _ClassVar[TensorDtype]
    DT_UINT32: _ClassVar[TensorDtype]
    DT_UINT64: _ClassVar[TensorDtype]
    DT_BOOL: _ClassVar[TensorDtype]
DT_FLOAT32: TensorDtype
DT_FLOAT16: TensorDtype
DT_BFLOAT16: TensorDtype
DT_FLOAT64: TensorDtype
DT_INT8: TensorDtype
DT_INT16: TensorDtype
DT_INT32: TensorDtype
DT_INT64: TensorDtype
DT_UINT8: TensorDtype
DT_UINT16: TensorDtype
DT_UINT32: TensorDtype
DT_UINT64: TensorDtype
DT_BOOL: TensorDtype

class TrainedModel(_message.Message):
    __slots__ = ("docker_commit_id", "model_def", "model_def_params", "params_filename", "input_function", "loss", "optimizer", "elasticdl_version", "version", "zoo_directory", "element_spec", "saved_model", "keras_file", "keras_file_problem", "job_name", "params_sha256", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DOCKER_COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_DEF_FIELD_NUMBER: _ClassVar[int]
    MODEL_DEF_PARAMS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FILENAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    ELASTICDL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ZOO_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_SPEC_FIELD_NUMBER: _ClassVar[int]
    SAVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    KERAS_FILE_FIELD_NUMBER: _ClassVar[int]
    KERAS_FILE_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_SHA256_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    docker_commit_id: str
    model_def: str
    model_def_params: str
    params_filename: str
    input_function: str
    loss: str
    optimizer: str
    elasticdl_version: str
    version: int
    zoo_directory: str
    element_spec: str
    saved_model: str
    keras_file: str
    keras_file_problem: str
    job_name: str
    params_sha256: bytes
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, docker_commit_id: _Optional[str] = ..., model_def: _Optional[str] = ..., model_def_params: _Optional[str] = ..., params_filename: _Optional[str] = ..., input_function: _Optional[str] = ..., loss: _Optional[str] = ..., optimizer: _Optional[str] = ..., elasticdl_version: _Optional[str] = ..., version: _Optional[int] = ..., zoo_directory: _Optional[str] = ..., element_spec: _Optional[str] = ..., saved_model: _Optional[str] = ..., keras_file: _Optional[str] = ..., keras_file_problem: _Optional[str] = ..., job_name: _Optional[str] = ..., params_sha256: _Optional[bytes] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dim", "content", "dtype")
    DIM_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    dim: _containers.RepeatedScalarFieldContainer[int]
    content: bytes
    dtype: TensorDtype
    def __init__(self, dim: _Optional[_Iterable[int]] = ..., content: _Optional[bytes] = ..., dtype: _Optional[_Union[TensorDtype, str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("version", "param")
    class ParamEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    version: int
    param: _containers.MessageMap[str, Tensor]
    def __init__(self, version: _Optional[int] = ..., param: _Optional[_Mapping[str, Tensor]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("epoch", "slice", "element")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    slice: int
    element: int
    def __init__(self, epoch: _Optional[int] = ..., slice: _Optional[int] = ..., element: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("version", "cursors")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    version: int
    cursors: _containers.RepeatedCompositeFieldContainer[Cursor]
    def __init__(self, version: _Optional[int] = ..., cursors: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "records")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    path: str
    records: int
    def __init__(self, path: _Optional[str] = ..., records: _Optional[int] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("files", "slice_records")
    FILES_FIELD_NUMBER: _ClassVar[int]
    SLICE_RECORDS_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[File]
    slice_records: int
    def __init__(self, files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., slice_records: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker", "pid")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pid: int
    def __init__(self, worker: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("config", "data", "eval_data", "threads", "work_directory", "checkpoint_directory", "term")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    WORK_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    config: str
    data: Dataset
    eval_data: Dataset
    threads: int
    work_directory: str
    checkpoint_directory: str
    term: int
    def __init__(self, config: _Optional[str] = ..., data: _Optional[_Union[Dataset, _Mapping]] = ..., eval_data: _Optional[_Union[Dataset, _Mapping]] = ..., threads: _Optional[int] = ..., work_directory: _Optional[str] = ..., checkpoint_directory: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("worker", "generation", "progress", "address", "term")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    worker: str
    generation: int
    progress: Progress
    address: str
    term: int
    def __init__(self, worker: _Optional[str] = ..., generation: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., address: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker", "streams", "version")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    worker: str
    streams: _containers.RepeatedScalarFieldContainer[int]
    version: int
    def __init__(self, worker: _Optional[str] = ..., streams: _Optional[_Iterable[int]] = ..., version: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("generation", "members", "rank", "source", "rendezvous", "stop", "restore", "term", "save")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    rank: int
    source: int
    rendezvous: str
    stop: bool
    restore: bool
    term: int
    save: bool
    def __init__(self, generation: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., rank: _Optional[int] = ..., source: _Optional[int] = ..., rendezvous: _Optional[str] = ..., stop: _Optional[bool] = ..., restore: _Optional[bool] = ..., term: _Optional[int] = ..., save: _Optional[bool] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("version", "elements", "loss_sum", "steps", "metrics", "time", "total_elements", "epoch_elements")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    elements: int
    loss_sum: float
    steps: int
    metrics: _containers.MessageMap[str, Value]
    time: float
    total_elements: int
    epoch_elements: int
    def __init__(self, version: _Optional[int] = ..., elements: _Optional[int] = ..., loss_sum: _Optional[float] = ..., steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, Value]] = ..., time: _Optional[float] = ..., total_elements: _Optional[int] = ..., epoch_elements: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, numbers: _Optional[_Iterable[float]] = ...) -> None: ...

class EvaluationReport(_message.Message):
    __slots__ = ("version", "elements", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    version: int
    elements: int
    metrics: _containers.MessageMap[str, Value]
    def __init__(self, version: _Optional[int] = ..., elements: _Optional[int] = ..., metrics: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Pace(_message.Message):
    __slots__ = ("seconds", "elements", "steps")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    elements: int
    steps: int
    def __init__(self, seconds: _Optional[float] = ..., elements: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class CheckpointReport(_message.Message):
    __slots__ = ("version", "seconds", "bytes", "problem")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    version: int
    seconds: float
    bytes: int
    problem: str
    def __init__(self, version: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker", "generation", "phase", "progress", "steps", "evaluations", "learning_rate", "notices", "term", "rank", "streams", "pace", "checkpoint", "pid")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    worker: str
    generation: int
    phase: str
    progress: Progress
    steps: _containers.RepeatedCompositeFieldContainer[StepReport]
    evaluations: _containers.RepeatedCompositeFieldContainer[EvaluationReport]
    learning_rate: float
    notices: _containers.RepeatedScalarFieldContainer[str]
    term: int
    rank: int
    streams: _containers.RepeatedScalarFieldContainer[int]
    pace: Pace
    checkpoint: CheckpointReport
    pid: int
    def __init__(self, worker: _Optional[str] = ..., generation: _Optional[int] = ..., phase: _Optional[str] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[StepReport, _Mapping]]] = ..., evaluations: _Optional[_Iterable[_Union[EvaluationReport, _Mapping]]] = ..., learning_rate: _Optional[float] = ..., notices: _Optional[_Iterable[str]] = ..., term: _Optional[int] = ..., rank: _Optional[int] = ..., streams: _Optional[_Iterable[int]] = ..., pace: _Optional[_Union[Pace, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointReport, _Mapping]] = ..., pid: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("term",)
    TERM_FIELD_NUMBER: _ClassVar[int]
    term: int
    def __init__(self, term: _Optional[int] = ...) -> None: ...

class OrdersRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: str
    def __init__(self, worker: _Optional[str] = ...) -> None: ...

class Orders(_message.Message):
    __slots__ = ("regroup", "stop", "given_up", "term")
    REGROUP_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    regroup: bool
    stop: bool
    given_up: int
    term: int
    def __init__(self, regroup: _Optional[bool] = ..., stop: _Optional[bool] = ..., given_up: _Optional[int] = ..., term: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("worker", "reason", "saved")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    worker: str
    reason: str
    saved: bool
    def __init__(self, worker: _Optional[str] = ..., reason: _Optional[str] = ..., saved: _Optional[bool] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("save",)
    SAVE_FIELD_NUMBER: _ClassVar[int]
    save: bool
    def __init__(self, save: _Optional[bool] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("worker", "done")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    done: _containers.RepeatedCompositeFieldContainer[Done]
    def __init__(self, worker: _Optional[str] = ..., done: _Optional[_Iterable[_Union[Done, _Mapping]]] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("slice", "records")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    slice: int
    records: int
    def __init__(self, slice: _Optional[int] = ..., records: _Optional[int] = ...) -> None: ...

class LeaseReply(_message.Message):
    __slots__ = ("slices", "finished", "wait")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedScalarFieldContainer[int]
    finished: bool
    wait: bool
    def __init__(self, slices: _Optional[_Iterable[int]] = ..., finished: _Optional[bool] = ..., wait: _Optional[bool] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("worker", "generation", "version", "directory", "metrics", "term")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    worker: str
    generation: int
    version: int
    directory: str
    metrics: _containers.MessageMap[str, Value]
    term: int
    def __init__(self, worker: _Optional[str] = ..., generation: _Optional[int] = ..., version: _Optional[int] = ..., directory: _Optional[str] = ..., metrics: _Optional[_Mapping[str, Value]] = ..., term: _Optional[int] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ("accepted", "reason")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: str
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("worker", "kind", "message", "trace", "slices", "phase", "attempt")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    kind: str
    message: str
    trace: str
    slices: _containers.RepeatedScalarFieldContainer[str]
    phase: str
    attempt: int
    def __init__(self, worker: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., trace: _Optional[str] = ..., slices: _Optional[_Iterable[str]] = ..., phase: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class FailReply(_message.Message):
    __slots__ = ("again",)
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    again: bool
    def __init__(self, again: _Optional[bool] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("num_workers",)
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    num_workers: int
    def __init__(self, num_workers: _Optional[int] = ...) -> None: ...

class ScaleReply(_message.Message):
    __slots__ = ("problem",)
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    problem: str
    def __init__(self, problem: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker", "phase", "rank", "streams")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    phase: str
    rank: int
    streams: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, worker: _Optional[str] = ..., phase: _Optional[str] = ..., rank: _Optional[int] = ..., streams: _Optional[_Iterable[int]] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("job_name", "kind", "phase", "reason", "generation", "version", "epoch", "epochs", "epoch_fraction", "records", "records_total", "records_per_s", "loss", "metrics", "eval_metrics", "workers", "seconds_left", "failure_kind", "failure_message", "failure_trace", "notices", "output", "eval_version", "num_workers", "min_workers", "checkpoint_version", "checkpoint_problem", "term")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class EvalMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FRACTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EVAL_METRICS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_KIND_FIELD_NUMBER: _ClassVar[int]
    FAILURE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_TRACE_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EVAL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    job_name: str
    kind: str
    phase: str
    reason: str
    generation: int
    version: int
    epoch: int
    epochs: int
    epoch_fraction: float
    records: int
    records_total: int
    records_per_s: float
    loss: float
    metrics: _containers.MessageMap[str, Value]
    eval_metrics: _containers.MessageMap[str, Value]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    seconds_left: float
    failure_kind: str
    failure_message: str
    failure_trace: str
    notices: _containers.RepeatedScalarFieldContainer[str]
    output: str
    eval_version: int
    num_workers: int
    min_workers: int
    checkpoint_version: int
    checkpoint_problem: str
    term: int
    def __init__(self, job_name: _Optional[str] = ..., kind: _Optional[str] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., generation: _Optional[int] = ..., version: _Optional[int] = ..., epoch: _Optional[int] = ..., epochs: _Optional[int] = ..., epoch_fraction: _Optional[float] = ..., records: _Optional[int] = ..., records_total: _Optional[int] = ..., records_per_s: _Optional[float] = ..., loss: _Optional[float] = ..., metrics: _Optional[_Mapping[str, Value]] = ..., eval_metrics: _Optional[_Mapping[str, Value]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., seconds_left: _Optional[float] = ..., failure_kind: _Optional[str] = ..., failure_message: _Optional[str] = ..., failure_trace: _Optional[str] = ..., notices: _Optional[_Iterable[str]] = ..., output: _Optional[str] = ..., eval_version: _Optional[int] = ..., num_workers: _Optional[int] = ..., min_workers: _Optional[int] = ..., checkpoint_version: _Optional[int] = ..., checkpoint_problem: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
