"""Export a model to ONNX, in float32 or int8, and check that it gives the same retrieval results."""

from __future__ import annotations

import copy
import logging
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import flush
from orthoproxy.embedding.batches import Images, iterate_image_batches
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.file_formats import import_optional
from orthoproxy.embedding.onnx_embedder import INPUT, OUTPUT, OnnxEmbedder, OnnxMetadata
from orthoproxy.evaluation import Evaluation, NoMatchCalibration, Scoring, calibrate_no_match, score
from orthoproxy.evaluation.no_match import require_rate

TOLERANCE = 1e-4  # largest difference of an embedding's component, float32
MAX_RECALL_LOSS = 0.01  # upper bound of the interval of the loss of Recall@1, int8
MAX_FILE_SIZE = 2**31 - 2**20  # bytes; protobuf's limit is 2 GiB
CALIBRATION_BATCH = 16
# with 8-bit input and output, between convolutions
INT8_LAYERS = ["Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu"]


@dataclass(frozen=True)
class Exported:
    """An exported model and the result of its check.

    Parameters
    ----------
    path
        The ``.onnx`` file.
    metadata
        What the file says about the model: dimension, transform, threshold.
    difference
        Largest absolute difference between its embeddings and the original's.
    images
        Number of images compared.
    scores
        Recall@1 on the test images of the exported model and the original (`baseline`); None without test images.
    matching
        No-match calibration of the exported model on validation classes; None without.
    """

    path: Path
    metadata: OnnxMetadata
    difference: float
    images: int
    scores: Evaluation | None
    matching: NoMatchCalibration | None


def export_onnx(
    model: Embedder,
    out: Path,
    test: pd.DataFrame,
    validation: pd.DataFrame,
    training: Sequence[str] = (),
    int8: bool = False,
    false_match_rate: float = 0.01,
    license: str = "unknown",
    scoring: Scoring | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Exported:
    """Export a model to ONNX and check it against the original; raises InputError if it fails the check.

    In float32, no component of an embedding may differ from the original's by more than 1e-4. In int8, Recall@1 on the
    test images may not be lower than the original's by more than 0.01, by the upper bound of the paired interval.

    Parameters
    ----------
    model, out
        The original, and the file to write; left as it was if the check fails.
    test, validation
        Images that were not trained on, from `data.make_table`, to check the model and to set the no-match threshold;
        one may be empty.
    training, int8
        Quantize weights and activations to 8 bits, with ranges calibrated on these image files.
    false_match_rate
        Target of the no-match threshold; see `evaluation.NoMatchCalibration`.
    license, scoring
        License of the model; how Recall@1 is computed.
    workers, progress
        Data loading processes; whether to show progress.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.models import Encoder
    >>> folder = Path(tempfile.mkdtemp())
    >>> paths = [str(folder / f"{number}.png") for number in range(4)]
    >>> for path, color in zip(paths, ["red", "red", "blue", "blue"]):
    ...     Image.new("RGB", (32, 32), color).save(path)
    >>> table = make_table(paths, ["a", "a", "b", "b"])
    >>> model = Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))
    >>> exported = export_onnx(model, folder / "model.onnx", table, table)
    >>> print(exported.scores.model["recall@1"], exported.difference < 1e-4)
    100.0 [100.0, 100.0] True
    """
    require_rate(false_match_rate)
    scoring = replace(scoring or Scoring(), recall_at=(1,))
    images = pd.concat([test, validation], ignore_index=True)
    if images.empty or (int8 and test.empty):
        raise InputError("no images to check the model on", field="test")
    if int8 and not training:
        raise InputError("no images to calibrate int8 on", field="training")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        path, metadata = Path(folder) / "float32.onnx", describe(model, license)
        write_onnx(model, path)
        if int8:
            path = quantize(path, model, training, workers, "calibrate" if progress else None)
            identity = sha256(path.read_bytes()).hexdigest()[:16]
            metadata = metadata.model_copy(update={"precision": "int8", "identity": identity})
        write_metadata(path, metadata)
        paths = images["path"].tolist()
        original = model.embed(paths, workers=workers, progress="embed, original" if progress else None)
        embeddings = OnnxEmbedder(path).embed(paths, workers=workers, progress="embed, ONNX" if progress else None)
        difference = float(np.abs(embeddings - original).max())
        scores = score(embeddings[: len(test)], original[: len(test)], test, scoring) if len(test) else None
        _check(int8, difference, scores)
        metadata = metadata.model_copy(update={"checked": _summarize(difference, len(images), scores)})
        # the float32 model gets the original's threshold to the last digit
        unseen = (embeddings if int8 else original)[len(test) :]
        matching = calibrate_no_match(unseen, validation, scoring) if len(validation) else None
        threshold = matching.threshold(false_match_rate) if matching else None
        if threshold is not None:
            metadata = metadata.model_copy(update={"threshold": threshold, "false_match_rate": false_match_rate})
        write_metadata(path, metadata)
        path.replace(out)
    return Exported(out, metadata, difference, len(images), scores, matching)


def describe(model: Embedder, license: str = "unknown") -> OnnxMetadata:
    """Return the metadata that the ONNX file of a model gets."""
    encoder = model.encoder
    size = model.transform.resize
    return OnnxMetadata(
        format_version=2,
        identity=model.identity,
        encoder=encoder.name,
        precision="float32",
        image_size=encoder.image_size,
        resize=size if isinstance(size, int) else "stretch",
        mean=encoder.mean.flatten().tolist(),
        std=encoder.std.flatten().tolist(),
        embedding_dim=encoder.embedding_dim,
        license=license,
        source=model.identity,
    )


def write_onnx(model: Embedder, path: Path) -> None:
    """Write a model as ONNX in float32, unchecked: pixels from 0 to 255 in, unit-length embeddings out."""
    import_optional("onnx", "onnx")
    import_optional("onnxscript", "onnx")
    encoder = copy.deepcopy(model.encoder).cpu().eval()
    size = sum(x.numel() * x.element_size() for x in encoder.state_dict().values())
    if size > MAX_FILE_SIZE:
        raise InputError(f"{size / 2**30:.1f} GiB of weights", field="model", expected="less than 2 GiB for ONNX")
    pixels = torch.zeros(2, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)
    with _quiet():
        try:
            program = torch.onnx.export(
                encoder,
                (pixels,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = textwrap.shorten(str(error.__cause__ or error), 160)
            raise InputError(f"{encoder.name} cannot be written as ONNX: {reason}", field="model") from error
        assert program is not None
        program.save(str(path), external_data=False)


def quantize(path: Path, model: Embedder, training: Images, workers: int = 0, progress: str | None = None) -> Path:
    """Write an int8 copy of an ONNX file beside it: static, per channel, with ranges from training images."""
    onnx, quantization = import_optional("onnx", "onnx"), import_optional("onnxruntime.quantization", "onnx")
    shape_inference = import_optional("onnxruntime.quantization.shape_inference", "onnx")
    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    batches = iterate_image_batches(training, model.transform, CALIBRATION_BATCH, workers, progress)
    inputs = ({INPUT: np.ascontiguousarray(batch)} for batch in batches)
    with _quiet():
        shape_inference.quant_pre_process(path, prepared, skip_symbolic_shape=True)  # folds batch norm
        graph = onnx.load(prepared, load_external_data=False).graph
        weights = {x.name for x in graph.initializer}
        convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
        attention = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
        # not the first two and the last convolution, which cost the most accuracy and the least time; in a transformer
        # only products with weights: the ranges of normalization, attention and residual sums are too wide
        transformer = any(node.op_type == "LayerNormalization" for node in graph.node)
        layers = ["Gemm", "MatMul"] if transformer else ["Conv", "Gemm", "MatMul", *INT8_LAYERS]
        quantization.quantize_static(
            prepared,
            quantized,
            SimpleNamespace(get_next=lambda: next(inputs, None)),  # a CalibrationDataReader
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=layers,
            nodes_to_exclude=[*attention, *convolutions[:2], *convolutions[-1:]],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    return quantized


def write_metadata(path: Path, metadata: OnnxMetadata) -> None:
    onnx = import_optional("onnx", "onnx")
    content = onnx.load(path)
    onnx.helper.set_model_props(content, metadata.to_properties())
    with path.open("wb") as file:
        onnx.save(content, file)
        flush(file)  # before it is renamed


def _summarize(difference: float, images: int, scores: Evaluation | None) -> str:
    text = f"embeddings of {images:,} images differ by up to {difference:.2g}"
    if scores is None or scores.baseline is None or scores.difference is None:
        return text
    onnx, original, change = (x["recall@1"] for x in (scores.model, scores.baseline, scores.difference))
    return f"Recall@1 {onnx}, original {original}, difference {change}; {text}"


def _check(int8: bool, difference: float, scores: Evaluation | None) -> None:
    """Raise InputError if the exported model deviates too much; NaN deviates."""
    if not int8:
        if not difference <= TOLERANCE:
            problem = f"the embeddings of the ONNX file differ from the original's by up to {difference:.2g}"
            raise InputError(problem, expected=f"at most {TOLERANCE:g}")
        return
    assert scores is not None and scores.difference is not None
    change = scores.difference["recall@1"]
    if not -change.low <= MAX_RECALL_LOSS:
        expected = f"a loss of at most {100 * MAX_RECALL_LOSS:g} by the upper bound"
        problem = f"Recall@1 changes by {change} points"
        raise InputError(problem, field="int8", expected=expected, hint="export in float32")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's and the quantizer's warnings about their own deprecations."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
