"""From a trained model to an ONNX file that is known to give the same results, in float32 or in int8."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import flush
from orthoproxy.core.progress import Progress
from orthoproxy.data import evaluation_size
from orthoproxy.embedding.embedder import Embedder, Images, iterate_batches
from orthoproxy.embedding.onnx_embedder import INPUT, OUTPUT, Description, OnnxEmbedder, imported, read_description
from orthoproxy.evaluation import Evaluation, NoMatchCalibration, Scoring, calibrate_no_match, score

TOLERANCE = 1e-4  # of a number in an embedding, float32
MOST_LOSS = 0.01  # of Recall@1, int8: the upper bound of its interval
LARGEST = 2**31 - 2**20  # bytes that a single ONNX file can hold
CALIBRATED_AT_ONCE = 16
# layers that can take 8 bits in and give 8 bits out
BETWEEN_CONVOLUTIONS = ["Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu"]


@dataclass(frozen=True)
class Exported:
    """An exported model, and what its check found.

    Parameters
    ----------
    path
        The file.
    about
        What it says of itself.
    difference
        The largest difference between a number in its embeddings and the original's.
    images
        How many images were compared.
    scores
        Recall@1 on the test images: of the exported model (`trained`), of the original (`untrained`), and their paired
        difference; None without test images.
    matching
        How alike right and wrong hits of the exported model are, on validation classes; None without.

    Examples
    --------
    >>> about = Description("0" * 16, "test_vit", "float32", 32, 36, [0.5] * 3, [0.5] * 3, embedding_dim=8)
    >>> Exported(Path("model.onnx"), about, difference=2e-7, images=9, scores=None, matching=None).difference
    2e-07
    """

    path: Path
    about: Description
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
    """Write a model as ONNX, if it gives the results of the original.

    In float32, each number of each embedding must be within `TOLERANCE` of the original's. In int8, Recall@1 on the
    test images must not be lower than the original's by more than `MOST_LOSS`, by the upper bound of the paired
    interval.

    Parameters
    ----------
    model
        The original.
    out
        The file; nothing is left there if the check fails.
    test, validation
        Images of classes that were not trained on, from `data.make_table`; may be empty. Test images are for the check,
        validation images for the threshold.
    training
        Image files that say which numbers occur inside the network, for int8.
    int8
        Round weights and what goes through the network to 8 bits.
    false_match_rate
        The share of queries of unknown classes that may be answered; see `evaluation.NoMatchCalibration`.
    license
        Of the model.
    scoring
        How Recall@1 is scored.
    workers
        Processes that read images.
    progress
        Show it.

    Returns
    -------
    Exported
        With what the check found.

    Raises
    ------
    InputError
        If the exported model does not pass, cannot be checked, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.models import Encoder
    >>> folder = Path(tempfile.mkdtemp())
    >>> paths = [str(folder / f"{number}.png") for number in range(4)]
    >>> for path, colour in zip(paths, ["red", "red", "blue", "blue"]):
    ...     Image.new("RGB", (32, 32), colour).save(path)
    >>> table = make_table(paths, ["a", "a", "b", "b"])
    >>> model = Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))
    >>> exported = export_onnx(model, folder / "model.onnx", table, table)
    >>> print(exported.scores.model["recall@1"], exported.difference < 1e-4)
    100.0 [100.0, 100.0] True
    >>> OnnxEmbedder(exported.path).embed(paths).shape
    (4, 8)
    """
    scoring = replace(scoring or Scoring(), recall_at=(1,), nmi=False)
    images = pd.concat([test, validation], ignore_index=True)
    _require_images(images, test, training if int8 else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        path, about = Path(folder) / "float32.onnx", describe(model, license)
        write_onnx(model, path)
        if int8:
            path = quantize(path, model, training, workers, "calibrate" if progress else None)
            about = replace(about, precision="int8", identity=_identity_of(path))
        _write_metadata(path, about)
        embed = {"workers": workers, "progress": "embed, original" if progress else None}
        original = model.embed(images["path"].tolist(), **embed)
        embed["progress"] = "embed, exported" if progress else None
        ours = OnnxEmbedder(path).embed(images["path"].tolist(), **embed)
        difference = float(np.abs(ours - original).max())
        scores = score(ours[: len(test)], original[: len(test)], test, scoring) if len(test) else None
        _require_alike(int8, difference, scores)
        about = replace(about, checked=_words(difference, len(images), scores))
        unseen = (ours if int8 else original)[len(test) :]  # of float32 the same, but for its last digits
        matching = calibrate_no_match(unseen, validation, scoring) if len(validation) else None
        threshold = matching.threshold(false_match_rate) if matching else None
        if threshold is not None:
            about = replace(about, threshold=threshold, false_match_rate=false_match_rate)
        _write_metadata(path, about)
        path.replace(out)
    return Exported(out, about, difference, len(images), scores, matching)


def describe(model: Embedder, license: str = "unknown") -> Description:
    """Describe a model as its ONNX file will.

    Parameters
    ----------
    model
        The original.
    license
        Of the model.

    Examples
    --------
    >>> from orthoproxy.models import Encoder
    >>> describe(Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))).precision
    'float32'
    """
    encoder, identity = model.encoder, model.identity
    size = evaluation_size(encoder.image_size, model.resize)
    return Description(
        identity=identity,
        encoder=encoder.name,
        precision="float32",
        image_size=encoder.image_size,
        resize=size if isinstance(size, int) else "stretch",
        mean=encoder.mean.flatten().tolist(),
        std=encoder.std.flatten().tolist(),
        embedding_dim=encoder.embedding_dim,
        license=license,
        source=identity,
    )


def exports_of(folder: Path, source: str) -> Iterator[tuple[Path, Description]]:
    """Find the ONNX files that were exported from a model.

    Parameters
    ----------
    folder
        Where to look.
    source
        The model's identity.

    Yields
    ------
    path, about
        The file and what it says of itself, by name.

    Examples
    --------
    >>> list(exports_of(Path("nowhere"), "0123456789abcdef"))
    []
    """
    for path in sorted(folder.glob("*.onnx")):
        with suppress(InputError):  # somebody else's file
            about = read_description(path)
            if about.source == source:
                yield path, about


def write_onnx(model: Embedder, path: Path) -> None:
    """Write a model as ONNX in float32, unchecked: pixels from 0 to 255 in, unit-length embeddings out.

    Parameters
    ----------
    model
        The original.
    path
        The file.

    Raises
    ------
    InputError
        If the model has a part that ONNX lacks, or is too large for one file.

    Examples
    --------
    >>> import tempfile
    >>> from orthoproxy.models import Encoder
    >>> path = Path(tempfile.mkdtemp()) / "model.onnx"
    >>> write_onnx(Embedder(Encoder("test_vit", embedding_dim=8, image_size=32)), path)
    >>> path.stat().st_size > 10_000
    True
    """
    imported("onnx")
    imported("onnxscript")
    encoder = copy.deepcopy(model.encoder).cpu().eval()
    size = sum(x.numel() * x.element_size() for x in encoder.state_dict().values())
    if size > LARGEST:
        raise InputError(f"export: {size / 2**30:.1f} GiB of weights; an ONNX file holds less than 2")
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
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            raise InputError(f"export: {encoder.name} cannot be written as ONNX: {reason}") from error
        assert program is not None
        program.save(str(path), external_data=False)


def quantize(path: Path, model: Embedder, training: Images, workers: int = 0, what: str | None = None) -> Path:
    """Write an int8 copy of an ONNX file beside it, unchecked: static, ranges from training images.

    Weights are rounded channel by channel. In a convolutional network, what flows between the layers is 8 bits wide
    too, but for the first two and the last, which cost the most accuracy and the least time. In a transformer only the
    large products of activations with weights are: the numbers in normalisation, attention and sums range too widely.

    Parameters
    ----------
    path
        From `write_onnx`.
    model
        The original, for its view of an image.
    training
        Images, as `Embedder.embed` takes them.
    workers
        Processes that read files.
    what
        What to call the work in the progress shown; None to show none.

    Returns
    -------
    Path
        Of the copy.

    Raises
    ------
    InputError
        If onnxruntime is not installed, or an image cannot be read.

    Examples
    --------
    See `export_onnx`.
    """
    onnx, quantization = imported("onnx"), imported("onnxruntime.quantization")
    prepare = imported("onnxruntime.quantization.shape_inference").quant_pre_process
    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    with _quiet(), Progress(what or "calibrate", len(training), shown=what is not None) as progress:
        prepare(path, prepared, skip_symbolic_shape=True)  # folds batch norm into the convolutions
        graph = onnx.load(prepared, load_external_data=False).graph
        weights = {x.name for x in graph.initializer}
        convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
        attention = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
        transformer = any(node.op_type == "LayerNormalization" for node in graph.node)
        layers = ["Gemm", "MatMul"] if transformer else ["Conv", "Gemm", "MatMul"]
        quantization.quantize_static(
            prepared,
            quantized,
            _Calibration(iterate_batches(training, model.transform, CALIBRATED_AT_ONCE, workers), progress),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=layers if transformer else [*layers, *BETWEEN_CONVOLUTIONS],
            nodes_to_exclude=[*attention, *convolutions[:2], *convolutions[-1:]],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    return quantized


def _require_images(images: pd.DataFrame, test: pd.DataFrame, calibration: Sequence[str] | None) -> None:
    """Refuse to export what could not be checked, or in int8 calibrated (None: in float32)."""
    if images.empty or (calibration is not None and test.empty):
        raise InputError("export: there are no test images to check the model on; train with some kept apart")
    if calibration is not None and not len(calibration):
        raise InputError("--int8: there are no training images to calibrate on")


class _Calibration:
    """Feeds images to onnxruntime's calibration, which asks for them one batch at a time."""

    def __init__(self, batches: Iterable[Tensor], progress: Progress) -> None:
        self.batches, self.progress = iter(batches), progress

    def get_next(self) -> dict[str, UInt8[np.ndarray, "b 3 S S"]] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        self.progress.advance(len(batch), unit="images")
        return {INPUT: batch.numpy()}


def _identity_of(path: Path) -> str:
    """Sixteen digits for a model that is no longer its original: of all that the file holds."""
    return sha256(path.read_bytes()).hexdigest()[:16]


def _write_metadata(path: Path, about: Description) -> None:
    onnx = imported("onnx")
    content = onnx.load(path)
    onnx.helper.set_model_props(content, about.metadata())
    with path.open("wb") as file:
        onnx.save(content, file)
        flush(file)  # before it is renamed


def _words(difference: float, images: int, scores: Evaluation | None) -> str:
    words = f"embeddings of {images:,} images differ by up to {difference:.2g}"
    if scores is None or scores.baseline is None or scores.difference is None:
        return words
    ours, original, change = (x["recall@1"] for x in (scores.model, scores.baseline, scores.difference))
    return f"Recall@1 {ours}, original {original}, difference {change}; {words}"


def _require_alike(int8: bool, difference: float, scores: Evaluation | None) -> None:
    if not int8:
        if not difference <= TOLERANCE:  # nor may it be NaN
            raise InputError(
                f"export: the exported model's embeddings differ from the original's by up to {difference:.2g}, more "
                f"than {TOLERANCE:g}; nothing was written"
            )
        return
    assert scores is not None and scores.difference is not None
    change = scores.difference["recall@1"]
    if not -change.low <= MOST_LOSS:
        raise InputError(
            f"--int8: Recall@1 changes by {change} points, and a loss of up to {-100 * change.low:.1f} is more than "
            f"{100 * MOST_LOSS:g}; nothing was written. Export in float32 (without --int8)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter and the quantiser say of their own deprecated parts and hints."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
