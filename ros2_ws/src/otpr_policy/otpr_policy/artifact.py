# SPDX-License-Identifier: Apache-2.0
"""The policy file: one ONNX graph that carries its own manifest.

The graph holds normaliser, denoising steps, clipping and de-normaliser; the manifest, JSON in the model's metadata,
says what the numbers mean and what was proved of them. docs/artifact.md gives the format field by field.

The last bytes of the file are a checksum of all the others, so that a damaged file is told from a whole one. A file
that came from elsewhere is checked before anything runs it. Parsing uses ``onnx`` on bytes in memory, which
never follows a reference to another file.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from otpr_policy.errors import ArtifactError, SpecError
from otpr_policy.spec import PolicySpec, is_number

SCHEMA_VERSION = 4
READABLE_VERSIONS = (1, 2, 3, 4)  # a key that came later has a default, which is what an older file means; see _since
METADATA_KEY = "otpr.manifest"
CHECKSUM_KEY = "otpr.sha256"
SIZE_LIMIT_BYTES = 512 * 2**20  # far above any policy that meets a control deadline; bounds what a hostile file costs us
_RANDOM_OPERATORS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
_T = TypeVar("_T")


def _since(version: int, default: Any) -> Any:
    """A key of the manifest that files below ``version`` do without."""
    return field(default=default, metadata={"since": version})


@dataclass(frozen=True)
class Denoising:
    """The chain that is unrolled in the graph."""

    sampler: str  # "ddpm" or "ddim" of a diffusion, "bridge" of an interpolant
    steps: int  # denoising steps in the graph
    train_steps: int  # length of the schedule it was trained with; of an interpolant, the scale of its time
    eta: float  # share of the noise of the sampler's stochastic form, 1 for DDPM
    source: str = _since(3, "gaussian")  # what the chain starts from

    def __post_init__(self) -> None:
        if self.steps < 1 or self.train_steps < 1:
            raise ArtifactError(f"denoising in {self.steps} of {self.train_steps} steps is none")


@dataclass(frozen=True)
class Selection:
    """How many chains the graph runs, and by which critic's values it chooses one: the mean over heads - pessimism * their deviation."""

    candidates: int = _since(2, 1)  # S; 1 is one chain and no critic
    heads: int = _since(2, 0)  # critics of the ensemble
    pessimism: float = _since(2, 0.0)  # in standard deviations over the heads

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.heads < 0 or self.pessimism < 0.0:
            raise ArtifactError(f"{self.candidates} candidates, {self.heads} heads and pessimism {self.pessimism:g} cannot be")
        if (self.candidates == 1) != (self.heads == 0) or (self.heads == 0 and self.pessimism > 0.0):
            raise ArtifactError(f"{self.candidates} candidates do not go with a critic of {self.heads} heads, pessimism {self.pessimism:g}")

    def __str__(self) -> str:
        if self.candidates == 1:
            return "none: one chain"
        return f"1 of {self.candidates} chains, by a critic with {self.heads} head(s), pessimism {self.pessimism:g}"


@dataclass(frozen=True)
class Provenance:
    """Where the policy comes from."""

    algorithm: str
    task: str
    seed: int
    demos_sha256: str
    git_commit: str
    created: str  # ISO 8601, UTC
    otpr_version: str


@dataclass(frozen=True)
class Parity:
    """How closely the graph computes what was trained, on random inputs."""

    inputs: int  # how many random inputs
    tolerance: float  # largest error that export accepts
    step_errors: tuple[float, ...]  # per denoising step, as a fraction of the normalised range
    end_to_end_error: float  # of the actions, as a fraction of each action's range
    value_error: float = _since(2, 0.0)  # of the values by which a candidate is chosen
    near_ties: int = _since(
        2, 0
    )  # inputs whose best candidates' values differ by less than rounding, where any of these candidates is accepted

    weights: str = _since(4, "fp32")  # how matrices are stored; of others than fp32, ``step_errors`` are those of the graph before it

    def __post_init__(self) -> None:
        if not 0 <= self.near_ties <= self.inputs:
            raise ArtifactError(f"{self.near_ties} near ties among {self.inputs} random inputs cannot be")


@dataclass(frozen=True)
class Evaluation:
    """Success of the trained network and of this graph on the same episodes with the same noise."""

    episodes: int
    seed: int
    horizon: int  # control steps after which an episode counts as failed
    success_rule: str
    torch_successes: int
    artifact_successes: int
    disagreements: int  # episodes in which the two differ

    def __post_init__(self) -> None:
        counts = (self.torch_successes, self.artifact_successes, self.disagreements)
        if self.episodes < 1 or not all(0 <= count <= self.episodes for count in counts):
            raise ArtifactError(f"evaluation of {self.episodes} episodes cannot have counts {', '.join(map(str, counts))}")


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime and a reader must know about a policy file."""

    policy: PolicySpec
    noise_shape: tuple[int, ...]
    denoising: Denoising
    provenance: Provenance
    parity: Parity
    evaluation: Evaluation
    selection: Selection = field(default_factory=Selection, metadata={"since": 2})

    def __post_init__(self) -> None:
        chunk = (self.policy.chunk_length, self.policy.action.size)
        if len(self.noise_shape) != 3 or self.noise_shape[1:] != chunk:
            raise ArtifactError(f"noise of shape {self.noise_shape} does not fit chunks of shape {chunk}")
        candidates = self.selection.candidates
        if self.noise_shape[0] % candidates:
            raise ArtifactError(f"noise of shape {self.noise_shape} cannot be divided among {candidates} candidates")
        parity = self.parity
        if candidates == 1 and (parity.value_error, parity.near_ties) != (0.0, 0):
            raise ArtifactError(f"one chain has no values to compare, got parity {parity}")
        if len(parity.step_errors) != self.denoising.steps:
            raise ArtifactError(f"{len(parity.step_errors)} step errors for {self.denoising.steps} denoising steps")
        worst = float(np.max([*parity.step_errors, parity.value_error, parity.end_to_end_error]))  # NaN if any is
        if not worst <= parity.tolerance:
            raise ArtifactError(f"graph and network differ by {worst:.1e} of the range, more than the accepted {parity.tolerance:.1e}")

    def to_json(self) -> dict[str, Any]:
        """Plain data, as stored in the file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "policy": self.policy.to_json(),
            "noise_shape": list(self.noise_shape),
            "denoising": asdict(self.denoising),
            "provenance": asdict(self.provenance),
            "parity": asdict(self.parity),
            "evaluation": asdict(self.evaluation),
            "selection": asdict(self.selection),
        }

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Parses :meth:`to_json`'s form, of any readable version. Raises ArtifactError naming the key that is wrong."""
        if not isinstance(data, dict):
            raise ArtifactError("the manifest is not a JSON object")
        version = data.get("schema_version")
        if type(version) is not int or version not in READABLE_VERSIONS:  # True and 1.0 equal 1
            known = f"{', '.join(map(str, READABLE_VERSIONS[:-1]))} and {READABLE_VERSIONS[-1]}"
            raise ArtifactError(f"manifest schema version {version!r}; this runtime reads versions {known}")
        sections = {"schema_version", *_keys(cls, version)}
        if set(data) != sections:
            raise ArtifactError(f"manifest keys are {', '.join(sorted(data))}; expected {', '.join(sorted(sections))}")
        try:
            policy = PolicySpec.from_json(data["policy"])
        except SpecError as error:
            raise ArtifactError(f"manifest policy: {error}") from error
        for key, since in (("reads_previous", 3), ("reads_committed", 4)):
            if (key in data["policy"]) != (version >= since):
                raise ArtifactError(f"manifest policy: the key {key} is of version {since}, and every file from that version on has it")
        shape = data["noise_shape"]
        if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise ArtifactError(f"manifest noise_shape {shape!r} is not a list of positive whole numbers")
        return cls(
            policy,
            tuple(shape),
            _record(Denoising, data["denoising"], version),
            _record(Provenance, data["provenance"], version),
            _record(Parity, data["parity"], version),
            _record(Evaluation, data["evaluation"], version),
            Selection() if version == 1 else _record(Selection, data["selection"], version),
        )


@dataclass(frozen=True)
class PolicyArtifact:
    """A checked policy file. ``sha256`` of ``content`` is its identity, published by the node and written into recordings."""

    content: bytes
    sha256: str
    manifest: Manifest


def embed(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The file's content: ``model`` with ``manifest`` in its metadata, checked as :func:`load` will check it."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    del stamped.metadata_props[:]  # exporters leave build paths there
    onnx.helper.set_model_props(stamped, {METADATA_KEY: json.dumps(manifest.to_json())})
    body = bytes(stamped.SerializeToString())
    content = body + _checksum(body)
    parse(content)
    return content


def load(path: Path) -> PolicyArtifact:
    """Reads and checks a policy file.

    Raises:
        ArtifactError: there is no such file, or it is too large, truncated, not ONNX, refers to external data, uses
            custom operators, holds non-finite constants, has no manifest, one of another version, or one that
            disagrees with the graph.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT_BYTES + 1)  # a device file states no size
    except OSError as error:
        raise ArtifactError(f"cannot read policy {path}: {error.strerror}") from error
    if len(content) > SIZE_LIMIT_BYTES:
        raise ArtifactError(f"{path} is too large; the limit is {SIZE_LIMIT_BYTES} bytes")
    try:
        return parse(content)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def parse(content: bytes) -> PolicyArtifact:
    """Checks a policy file's content; see :func:`load` for what it refuses."""
    model = check_model(content)
    manifest = _read_manifest(model)
    body = content[: -len(_checksum(b""))]
    if content != body + _checksum(body):
        raise ArtifactError("the file is damaged: its content does not match its checksum")
    _check_signature(model, manifest)
    return PolicyArtifact(content, sha256(content).hexdigest(), manifest)


def _checksum(body: bytes) -> bytes:
    """One more metadata entry, serialised. Protobuf reads messages that follow each other as one, so it can stand at the end."""
    trailer = onnx.ModelProto()
    onnx.helper.set_model_props(trailer, {CHECKSUM_KEY: sha256(body).hexdigest()})
    return bytes(trailer.SerializeToString())


def check_model(content: bytes) -> onnx.ModelProto:
    """Parses ONNX and refuses what no policy needs. Raises ArtifactError; knows nothing of manifests."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError class differs between its implementations
        raise ArtifactError("not an ONNX file, or truncated") from error
    if not model.graph.node or not model.graph.output:
        raise ArtifactError("not an ONNX file: it has no graph")
    if model.functions or model.training_info:
        raise ArtifactError("the model defines functions or training steps; a policy is one flat graph")
    for node in model.graph.node:
        if node.domain:
            raise ArtifactError(f"operator {node.op_type!r} of domain {node.domain!r}; only standard ONNX operators are run")
        if node.op_type in _RANDOM_OPERATORS:
            raise ArtifactError(f"operator {node.op_type!r} draws random numbers; all of a policy's noise is its input")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ArtifactError(f"operator {node.op_type!r} holds a subgraph; a policy is one flat graph without loops or branches")
        if not all(np.isfinite([attribute.f, *attribute.floats]).all() for attribute in node.attribute):
            raise ArtifactError(f"operator {node.op_type!r} holds a number that is not finite")
    for tensor in _constants(model.graph):
        _check_constant(tensor)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, but UnicodeDecodeError where the message quotes a damaged name
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # some builds of Python give no text here
        raise ArtifactError(f"not a valid ONNX graph: {reason}") from error
    return model


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise ArtifactError("sparse weights are not supported")
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ArtifactError("sparse weights are not supported")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_constant(tensor: onnx.TensorProto) -> None:
    name = tensor.name or "a constant"
    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ArtifactError(f"{name} lies in another file; a policy is one file with its weights inside")
    try:
        values = numpy_helper.to_array(tensor)
    except Exception as error:  # onnx raises several kinds for a size that does not match its data
        raise ArtifactError(f"{name} cannot be read: {error}") from error
    if values.dtype != object and not np.isfinite(values).all():  # object is text
        raise ArtifactError(f"{name} holds a number that is not finite")


def _read_manifest(model: onnx.ModelProto) -> Manifest:
    entries = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(entries) != 1:
        raise ArtifactError(f"the file has {len(entries)} {METADATA_KEY!r} entries, an OTPR policy has one; make one with 'otpr export'")
    try:
        data = json.loads(entries[0], parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the manifest is not JSON: {error}") from error
    return Manifest.from_json(data)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key is repeated")
    return data


def _keys(kind: type[Any], version: int) -> dict[str, Any]:
    """Keys of a section and their types in a version of the schema."""
    return {field.name: field.type for field in fields(kind) if field.metadata.get("since", 1) <= version}


def _record(kind: type[_T], data: Any, version: int) -> _T:
    """Builds a flat manifest section, refusing unknown, missing and mistyped keys."""
    section = kind.__name__.lower()
    kinds = _keys(kind, version)
    if not isinstance(data, dict) or set(data) != set(kinds):
        got = ", ".join(sorted(data)) if isinstance(data, dict) else repr(data)
        raise ArtifactError(f"manifest {section} needs the keys {', '.join(sorted(kinds))}; got {got}")
    values: dict[str, Any] = {}
    for key, expected in kinds.items():
        value = data[key]
        if expected == tuple[float, ...]:
            valid = isinstance(value, list) and all(is_number(item) for item in value)
            values[key] = tuple(value) if valid else None
        elif expected is float:
            valid = is_number(value)
            values[key] = float(value) if valid else None
        else:
            valid = isinstance(value, expected) and not isinstance(value, bool) and (expected is not str or value.isprintable())
            values[key] = value
        if not valid:
            raise ArtifactError(f"manifest {section}.{key}: {value!r} is not of the expected type")
    return kind(**values)


def _check_signature(model: onnx.ModelProto, manifest: Manifest) -> None:
    policy = manifest.policy
    expected_inputs = {
        "observation": [1, policy.observation_horizon, policy.observation.size],
        "noise": [1, *manifest.noise_shape],
    }
    expected_outputs = {"action": [1, policy.chunk_length, policy.action.size]}
    if policy.reads_previous:
        expected_inputs["previous"] = expected_outputs["action"]
    if policy.reads_committed:
        expected_inputs["committed"] = expected_outputs["action"]
        expected_inputs["committed_weight"] = [1, policy.chunk_length]
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for side, values, expected in (("inputs", inputs, expected_inputs), ("outputs", list(model.graph.output), expected_outputs)):
        found = {value.name: _shape(value) for value in values}
        if found != expected:
            raise ArtifactError(f"graph {side} are {found}, but the manifest says {expected}")
        for value in values:
            if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
                raise ArtifactError(f"graph {side}: {value.name} is not float32")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dimensions = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dimensions]
