"""What the output directory of a training holds; read and published without TensorFlow."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from elasticdl import config as configs
from elasticdl import version as versions
from elasticdl.errors import UserError
from elasticdl.model import source as sources
from elasticdl.wire import elasticdl_pb2 as pb

if TYPE_CHECKING:
    from elasticdl.model import spec

TRAINED_MODEL = "trained_model.pb"
READABLE = "trained_model.json"
PARAMETERS = {"safetensors": "parameters.safetensors", "proto": "parameters.pb"}
SAVED_MODEL = "saved_model"
KERAS_FILE = "model.keras"
ZOO = "zoo"

# A protobuf message is smaller than 2 GB; names and shapes need some of that.
PROTO_BYTES = (1 << 31) - (1 << 24)

Array = np.ndarray[Any, Any]


def write(
    directory: str | os.PathLike[str],
    *,
    definition: "spec.Definition",
    source: sources.ModelSource,
    config: configs.JobConfig,
    version: int,
    sample_spec: Any,
    metrics: Mapping[str, float | Sequence[float]],
) -> None:
    """Puts a complete trained model into `directory`, which is empty; trained_model.pb comes last.

    Args:
        definition: its model's variables hold the final values.
        source: the model's files, of which a copy is made.
        version: committed steps.
        sample_spec: type specs of a batch of training elements of any size.
        metrics: the last ones.

    Raises:
        UserError: the parameters do not go into the chosen format.
        OSError: the system refuses to write.
    """
    target = Path(directory)
    values = definition.values()
    digest = write_parameters(target, values, config.params_format, version)
    inputs = definition.inputs(sample_spec)
    exported = definition.export(target / SAVED_MODEL, target / KERAS_FILE, inputs)
    message = pb.TrainedModel(
        docker_commit_id=f"docker-pullable://{config.image}" if "@sha256:" in config.image else "",
        model_def=source.model_def,
        model_def_params=configs.format_params(source.params),
        params_filename=PARAMETERS[config.params_format],
        input_function=source.input_fn,
        loss=source.loss,
        optimizer=source.optimizer,
        elasticdl_version=versions.VERSION,
        version=version,
        zoo_directory=ZOO if source.zoo else "",
        element_spec=inputs,
        saved_model="" if exported.saved_model_problem else SAVED_MODEL,
        keras_file="" if exported.keras_file_problem else KERAS_FILE,
        keras_file_problem=exported.keras_file_problem,
        job_name=config.job_name,
        params_sha256=digest,
        metrics=_flat(metrics),
    )
    if source.zoo:
        copy_zoo(source.zoo, target / ZOO)
    readable = _readable(message)
    if exported.saved_model_problem:
        readable["saved_model_problem"] = exported.saved_model_problem
    (target / READABLE).write_text(json.dumps(readable, indent=1) + "\n", encoding="utf-8")
    (target / TRAINED_MODEL).write_bytes(message.SerializeToString(deterministic=True))


def write_parameters(
    directory: Path, values: Mapping[str, Array], params_format: str, version: int
) -> bytes:
    """Writes the parameters file; its SHA-256.

    Raises:
        UserError: they do not go into that format.
    """
    path = directory / PARAMETERS[params_format]
    check_size(sum(value.nbytes for value in values.values()), params_format)
    if params_format == "proto":
        model = pb.Model(version=version)
        for name, value in values.items():
            model.param[name].CopyFrom(_tensor(name, value))
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        try:
            safetensors.numpy.save_file(
                {name: np.asarray(value, order="C") for name, value in values.items()},
                path,
                metadata={"version": str(version)},
            )
        except safetensors.SafetensorError as error:
            # What the system said stands in its text alone.
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        # safetensors lets the owner alone read it; the other files follow the umask.
        path.chmod(0o666 & ~_umask())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def check_size(size: int, params_format: str) -> None:
    """Raises UserError: parameters of `size` bytes do not go into this format."""
    if params_format == "proto" and size > PROTO_BYTES:
        raise UserError(
            f"params_format: expected at most 2 GB of parameters for proto; got "
            f"{size / 1e9:.1f} GB. Use --params_format=safetensors."
        )


def publish(directory: Path, output: Path, overwrite: bool) -> None:
    """Moves a complete trained model from `directory` into `output`, which exists.

    At every moment `output` has a complete trained model or none: the old trained_model.pb goes
    first, the new one comes last. Done again after it was interrupted, it goes on.

    Raises:
        UserError: `output` has a trained model, and `overwrite` is not set.
    """
    message = _parsed(directory / TRAINED_MODEL)
    if (output / TRAINED_MODEL).exists():
        if not overwrite:
            raise UserError(
                f"output: expected no trained model there; got {output / TRAINED_MODEL}. Use "
                "--overwrite to replace it, or choose another --output."
            )
        (output / TRAINED_MODEL).unlink()
        _sync(output)
    keep = {
        READABLE,
        message.params_filename,
        message.saved_model,
        message.keras_file,
        message.zoo_directory,
    }
    for name in {*PARAMETERS.values(), SAVED_MODEL, KERAS_FILE, ZOO} - keep:
        _remove(output / name)
    for entry in sorted(directory.iterdir()):
        if entry.name != TRAINED_MODEL:
            for file in [entry, *entry.rglob("*")]:
                _sync(file)
            _remove(output / entry.name)
            _move(entry, output / entry.name)
    _sync(directory / TRAINED_MODEL)
    _sync(output)
    _move(directory / TRAINED_MODEL, output / TRAINED_MODEL)
    _sync(output)


def directory_of(path: str | os.PathLike[str]) -> Path:
    """The directory of the trained model at `path`, its directory or its trained_model.pb.

    Raises:
        UserError: there is none; it says what is there.
    """
    given = Path(os.path.expandvars(os.path.expanduser(path)))
    directory = given.parent if given.name == TRAINED_MODEL else given
    if (directory / TRAINED_MODEL).is_file():
        return directory
    problem = (
        f"trained_model: expected the output of a training, a directory with {TRAINED_MODEL}; got "
        f"{given}"
    )
    if directory.is_dir():
        there = sorted(entry.name for entry in directory.iterdir())
        shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
        if ".elasticdl" in there:
            raise UserError(
                f"{problem}, where a training is not finished. Wait for it, or start it again."
            )
        raise UserError(
            f"{problem}, which has {'only ' + shown if there else 'no files'}. Give the --output "
            "of a finished training."
        )
    if directory.exists():
        raise UserError(f"{problem}, which is a file. Give the directory.")
    raise UserError(f"{problem}, which does not exist. Give the --output of a finished training.")


def read(path: str | os.PathLike[str]) -> pb.TrainedModel:
    """What trained_model.pb says; the files that it names are there.

    Args:
        path: the directory, or the trained_model.pb in it; `~` and `$VARS` are expanded.

    Raises:
        UserError: it is no trained model, or not a complete one.
    """
    directory = directory_of(path)
    message = _parsed(directory / TRAINED_MODEL)
    for name in (message.params_filename, message.zoo_directory):
        if name and not (directory / name).exists():
            raise UserError(
                f"trained_model: expected {name} in {directory}, beside its {TRAINED_MODEL}; it is "
                "missing. Copy the whole directory."
            )
    return message


def source_of(path: str | os.PathLike[str]) -> sources.ModelSource:
    """Where the trained model's code is: in the copy of the zoo that it has.

    Raises:
        UserError: as `read`.
    """
    message = read(path)
    directory = directory_of(path)
    return sources.ModelSource(
        zoo=str(directory / message.zoo_directory) if message.zoo_directory else "",
        model_def=message.model_def,
        input_fn=message.input_function,
        loss=message.loss,
        optimizer=message.optimizer,
        params=configs.parse_params(message.model_def_params),
    )


def parameters(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The parameters of a trained model under their names, in either format.

    Raises:
        UserError: as `read`; or the file is not the one that was written.
    """
    message = read(path)
    file = directory_of(path) / message.params_filename
    content = file.read_bytes()
    if hashlib.sha256(content).digest() != message.params_sha256:
        raise UserError(
            f"trained_model: expected {file} as it was written; got other content (its SHA-256 is "
            f"not that in {TRAINED_MODEL}). Copy the trained model again, or train again."
        )
    if message.params_filename.endswith(".safetensors"):
        return {
            name: _array(tensor["data"], _DTYPES[tensor["dtype"]], tensor["shape"])
            for name, tensor in safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        }
    return {
        name: _array(
            tensor.content,
            pb.TensorDtype.Name(tensor.dtype).removeprefix("DT_").lower(),
            tensor.dim,
        )
        for name, tensor in pb.Model.FromString(content).param.items()
    }


def restore(definition: "spec.Definition", path: str | os.PathLike[str]) -> None:
    """Builds the definition's model if it is not, and gives its variables the trained values.

    Raises:
        UserError: as `parameters`; or the model has other variables than the trained one.
    """
    definition.build(read(path).element_spec)
    definition.assign(parameters(path), str(path))


# ---- the zoo ----------------------------------------------------------------------------------


def copy_zoo(zoo: str, target: Path) -> None:
    """Copies a zoo's files: no hidden ones, bytecode, virtual environments, data or trained models.

    Links become what they lead to; a link back into a directory above it is left out.
    """
    root = Path(os.path.expandvars(os.path.expanduser(zoo)))
    target.mkdir()
    # The target may be inside the zoo.
    above = (os.path.realpath(target), os.path.realpath(root))
    for source, relative in _zoo_files(root, Path(), above):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / relative)


def _zoo_files(
    directory: Path, relative: Path, above: tuple[str, ...]
) -> Iterator[tuple[Path, Path]]:
    for entry in sorted(directory.iterdir()):
        name = entry.name
        if name.startswith(".") or name == "__pycache__":
            continue
        if entry.is_dir():
            real = os.path.realpath(entry)
            foreign = (entry / "pyvenv.cfg").exists() or (entry / TRAINED_MODEL).exists()
            if real not in above and not foreign:
                yield from _zoo_files(entry, relative / name, (*above, real))
        elif entry.is_file() and entry.suffix not in (".pyc", ".recordio"):
            yield entry, relative / name


# ---- messages ---------------------------------------------------------------------------------


def _parsed(path: Path) -> pb.TrainedModel:
    try:
        message = pb.TrainedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(
            f"trained_model: expected a TrainedModel message in {path}; got other content. Copy "
            "the trained model again, or train again."
        ) from error
    if not message.model_def or not message.params_filename:
        raise UserError(
            f"trained_model: expected {path} to name a model and its parameters; got a message "
            "without. Copy the trained model again, or train again."
        )
    return message


def _readable(message: pb.TrainedModel) -> dict[str, Any]:
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    fields["params_sha256"] = message.params_sha256.hex()
    fields["element_spec"] = json.loads(message.element_spec)
    fields["version"] = message.version
    return {field.name: fields[field.name] for field in message.DESCRIPTOR.fields}


def _flat(metrics: Mapping[str, float | Sequence[float]]) -> dict[str, float]:
    """One number a name: the entries of a vector get numbers behind their name."""
    flat = {}
    for name, value in metrics.items():
        if isinstance(value, int | float):
            flat[name] = float(value)
        else:
            flat.update({f"{name}_{index}": float(entry) for index, entry in enumerate(value)})
    return flat


def _tensor(name: str, value: Array) -> pb.Tensor:
    dtype = f"DT_{value.dtype.name.upper()}"
    if dtype not in _TENSOR_DTYPES:
        raise UserError(
            f"params_format: expected a dtype that proto has for {name}; got {value.dtype.name}. "
            "Use --params_format=safetensors."
        )
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    return pb.Tensor(dim=value.shape, content=little.tobytes(), dtype=dtype)


def _array(content: bytes, dtype: str, shape: Sequence[int]) -> Array:
    array: Array = np.frombuffer(content, _dtype(dtype)).reshape(tuple(shape))
    return array


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    # Comes with TensorFlow; only models that use it need it.
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


_TENSOR_DTYPES = frozenset(name for name, _ in pb.TensorDtype.items())

# Of safetensors, by its names.
_DTYPES = {
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BF16": "bfloat16",
}


# ---- files ------------------------------------------------------------------------------------


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = target.with_name(f".{target.name}.partial")
        _remove(aside)
        shutil.move(source, aside)
        os.replace(aside, target)


def _sync(path: Path) -> None:
    """Makes what stands at `path` last through a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
