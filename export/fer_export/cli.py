"""The command `fer-export`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from fer_export.show import show_export, show_targets
from fer_runtime.collector import collector_stopped
from fer_runtime.command import (
    FerCommand,
    NumberRange,
    PathlibPath,
    RegistryChoice,
    Rule,
    RunOptions,
    option_group,
    own_name,
    say,
    take_options,
)
from fer_runtime.errors import CheckpointError, ExtraMissingError, ModelFileError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.extras import needs_extra
from fer_runtime.labels import parse_labels
from fer_runtime.model.find import (
    DEFAULT_MODELS_DIR,
    PRECISIONS,
    PREFERENCE,
    Precision,
    check_models_dir,
    checkpoint_names,
    checkpoint_path,
)
from fer_runtime.shared_options import ModelsFolder, named_models_rule
from fer_runtime.targets import TARGETS
from fer_runtime.text import printable
from fer_train.networks.architectures import ARCHITECTURES, find_architecture
from fer_train.networks.choice import NetworkChoice

if TYPE_CHECKING:
    from fer_export.gate.accuracy import Budget
    from fer_export.gate.report import ExportReport
    from fer_export.options import ExportOptions

_FOLDER = PathlibPath(file_okay=False)
_FILE = PathlibPath(dir_okay=False)
_NAMED = 10  # checkpoints that an error names


def _labels(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    try:
        return None if value is None else parse_labels(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """One number, or one for each channel."""
    try:
        numbers = None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) not in (1, 3):
        raise click.BadParameter(f"{value!r} is not one number, or three such as 0.485,0.456,0.406", context, parameter)
    return numbers


def _range(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        black, white = (float(part) for part in value.split(".."))
        if "..." in value:  # 0 and .1, or 0. and 1, or 0 to 1 with a slip
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r} is not BLACK..WHITE, such as -1..1", context, parameter) from None
    return black, white


class _ModelChoice(NetworkChoice):
    """A network to export; for --site and --target an exported model as well, by its name or its file."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        with suppress(click.BadParameter):
            return super().convert(value, param, ctx)
        return value  # `_network` refuses it where a network is needed


class ExportRun(RunOptions):
    """Export a checkpoint."""

    title: ClassVar[str] = "an export"

    model: str | None
    name: str | None
    precisions: tuple[Precision, ...]
    checkpoint: Path | None
    labels: tuple[str, ...] | None
    data: Path | None
    opset: int
    models_dir: Path
    votes: str | None
    batch: int | None
    budget: str
    keep_anyway: bool
    sign: Path | None  # a private key
    replace: bool


class AdoptRun(RunOptions):
    """Certify somebody else's .onnx file."""

    title: ClassVar[str] = "--adopt"

    adopted: Path
    name: str | None  # None: the file's
    faces: str | None  # colour and size, "gray64"
    pixel_range: tuple[float, float] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    layout: str | None
    scores: str | None  # name of an output
    temperature: float | None
    precisions: tuple[Precision, ...]
    labels: tuple[str, ...] | None
    data: Path | None
    models_dir: Path
    votes: str | None
    batch: int | None
    budget: str
    keep_anyway: bool
    sign: Path | None  # a private key
    replace: bool


class InspectRun(RunOptions):
    """Describe an exported file."""

    title: ClassVar[str] = "--inspect"

    inspected: Path
    as_json: bool


class TargetRun(RunOptions):
    """Convert an exported model for other runtimes."""

    title: ClassVar[str] = "--target"

    targets: tuple[str, ...]
    model: str | None
    name: str | None
    precisions: tuple[Precision, ...]
    data: Path | None
    models_dir: Path
    budget: str
    replace: bool


class SiteRun(RunOptions):
    """Write a web page for an exported model."""

    title: ClassVar[str] = "--site"

    site: Path
    model: str | None  # None: the best that is there
    name: str | None  # of the user's own model
    precisions: tuple[Precision, ...]
    models_dir: Path
    serve: bool
    ort_web: Path | None
    yunet: Path | None


_RULES = (
    Rule(
        "model",
        when=lambda given: given["name"] is not None and (bool(given["targets"]) or given["site"] is not None),
        because="not beside --name: both name the exported model",
    ),
    named_models_rule("model", "precisions", "models_dir", when=lambda given: given["site"] is not None),
    Rule(
        "budget",
        when=lambda given: (
            "int8" not in given["precisions"]
            and not given["inspected"]
            and not given["site"]
            and not (given["targets"] and given["data"])
        ),
        because="only with --precision int8, or with --target and --data",
    ),
    Rule(
        "votes",
        when=lambda given: given["data"] is None and not given["inspected"] and not given["site"],
        because="only with --data, whose images were rated",
    ),
    Rule(
        "keep_anyway",
        when=lambda given: not set(given["precisions"]) - {"fp32"} and not given["inspected"] and not given["site"],
        because="only with --precision int8 or fp16",
    ),
)


@click.command("fer-export", cls=FerCommand, runs=(ExportRun, AdoptRun, InspectRun, TargetRun, SiteRun), rules=_RULES)
@option_group(
    "Model",
    click.option(
        "--model",
        type=_ModelChoice(),
        help="Network of the checkpoint, needed only for a checkpoint of another program or of a function of yours. "
        "{entries} [default: what the checkpoint says] With --site and --target: an exported model, by its name or as "
        "an .onnx file.",
    ),
    click.option(
        "--name",
        callback=own_name,
        metavar="NAME",
        help="A model of your own: read NAME.pth, write NAME.onnx. [default: the network's files, such as "
        "model_v3.pth]",
    ),
    click.option(
        "--precision",
        "precisions",
        type=click.Choice(PRECISIONS),
        multiple=True,
        help="Precision of the file: fp32; int8, a quarter of the size and faster on CPUs, needs --data; "
        "fp16, half the size, for storage and GPUs. May be given several times. [default: fp32; with --target, that of "
        "an .onnx file]",
    ),
    click.option(
        "--checkpoint",
        type=_FILE,
        help="Trained weights: a checkpoint of fer-train, a state dict, or a pickled module of the first version. "
        "[default: the model's own in --models-dir]",
    ),
    click.option(
        "--labels",
        callback=_labels,
        metavar="A,B,...",
        help="Labels in the order of the logits, for a checkpoint or --adopt file of another program. [default: "
        + ",".join(EXPRESSIONS)
        + "; FER2013's csv has angry,disgust,fear,happy,sad,surprise,neutral]",
    ),
    click.option(
        "--models-dir",
        type=ModelsFolder(),
        default=DEFAULT_MODELS_DIR,
        show_default=True,
        help="Folder of the checkpoint and of the exported models.",
    ),
    click.option(
        "--opset",
        type=click.IntRange(min=1),
        default=18,
        show_default=True,
        help="ONNX opset version. int8 files have at least 19.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1, 65_536),
        metavar="N",
        help="Write files that take exactly N faces, such as model_0.batch1.onnx, for runtimes without a dynamic "
        "batch. [default: any batch size]",
    ),
    click.option("--replace", is_flag=True, help="Overwrite models of another checkpoint and other files."),
)
@option_group(
    "Gate",
    click.option(
        "--data",
        type=_FOLDER,
        help="Labelled faces: a folder with images/train and images/validation, or with train and validation. "
        "Without validation, the share of train that the training held out is used. "
        "They fit the temperature and judge int8. Without --data, synthetic faces are compared.",
    ),
    click.option(
        "--votes",
        metavar="FILE|ferplus",
        help="Raters' votes for the images of --data: a CSV file with one row per image, or ferplus. Their strict "
        "majority is the label for the accuracy; temperature and threshold are fitted to all votes.",
    ),
    click.option(
        "--budget",
        default="0.5,0.5,2",
        show_default=True,
        metavar="A,F,R",
        help="What int8 may lose against fp32, in points: accuracy, macro-F1, recall of each class.",
    ),
    click.option(
        "--keep-anyway",
        is_flag=True,
        help="Publish an int8 or fp16 file even if it fails its gate. Its metadata says so. Never for fp32.",
    ),
    click.option(
        "--sign",
        type=_FILE,
        metavar="KEY",
        help="Write a signature beside each published file, FILE.sig, with this Ed25519 private key (extra `sign`).",
    ),
)
@option_group(
    "Adopt a file of another program",
    click.option(
        "--adopt",
        "adopted",
        type=_FILE,
        metavar="FILE",
        help="Certify somebody else's .onnx classifier. Its labels are named with --labels, or read from its metadata.",
    ),
    click.option(
        "--input",
        "faces",
        metavar="COLORSIZE",
        help="Colour and size of its faces: gray64, rgb112, bgr224, ...",
    ),
    click.option(
        "--range",
        "pixel_range",
        callback=_range,
        metavar="BLACK..WHITE",
        help="Numbers that it expects for black and white, such as 0..255, 0..1 or -1..1. [default with --mean or "
        "--std: 0..1]",
    ),
    click.option(
        "--mean",
        callback=_numbers,
        metavar="A[,B,C]",
        help="Mean to subtract from the numbers of --range: one, or one per channel in the order of --input.",
    ),
    click.option("--std", callback=_numbers, metavar="A[,B,C]", help="Standard deviation to divide by after --mean."),
    click.option(
        "--layout",
        type=click.Choice(("nchw", "nhwc")),
        help="Order of its input's dimensions, if its shape is ambiguous.",
    ),
    click.option("--scores", metavar="NAME", help="Name of the output with the scores, if it has several."),
    click.option(
        "--temperature",
        type=NumberRange(1e-3, 1e3),
        help="Number to divide its logits by before the softmax. [default: 1, or fitted to --data]",
    ),
)
@option_group(
    "Inspect a file (needs no extra)",
    click.option("--inspect", "inspected", type=_FILE, metavar="FILE", help="Describe an .onnx file."),
    click.option("--json", "as_json", is_flag=True, help="Print the description as JSON."),
)
@option_group(
    "Other runtimes",
    click.option(
        "--target",
        "targets",
        type=RegistryChoice(TARGETS),
        multiple=True,
        help="Convert an exported model for another runtime. {entries} The files are published only if that runtime "
        "replays the golden faces, and with --data loses no more than --budget. May be given several times.",
    ),
)
@option_group(
    "Web page (needs no extra)",
    click.option(
        "--site",
        type=_FOLDER,
        metavar="DIR",
        help="Write a web page that runs an exported model to DIR; any static server serves it. "
        "[default model: the first available of " + ", ".join(PREFERENCE) + ", in int8 if available]",
    ),
    click.option("--serve", is_flag=True, help="Serve the page on this machine only, until Ctrl-C."),
    click.option(
        "--ort-web",
        type=_FOLDER,
        help="The unpacked npm package onnxruntime-web. [default: fetched once through npm, at a pinned version]",
    ),
    click.option(
        "--yunet",
        type=_FILE,
        help="YuNet's file, with which the page finds faces. Without it you place a frame on one face.",
    ),
)
def main(**given: Any) -> None:
    """Export a trained network to ONNX and check its parity with PyTorch.

    \b
    fer-export --model v0                                         compares on synthetic faces
    fer-export --model v0 --data data --precision fp32 --precision int8
    fer-export --name mine --data data                            models/mine.pth to models/mine.onnx
    fer-export --adopt other.onnx --input gray64 --range -1..1 --labels bored,engaged
    fer-export --inspect models/model_0.onnx
    fer-export --model v0 --target ncnn --target openvino         models/model_0.onnx for other runtimes
    fer-export --model v0 --site site --serve                     the model in a browser
    fer-export --model mine --site site                           a model of your own, models/mine.onnx

    A file is published only if it passes its gate. Otherwise nothing changes, the report says why,
    and the command exits 1.
    """
    if given["inspected"] is not None:
        _inspect(take_options(InspectRun))
    elif given["adopted"] is not None:
        _adopt(take_options(AdoptRun))
    elif given["targets"]:
        _convert(take_options(TargetRun))
    elif given["site"] is not None:
        _site(take_options(SiteRun))
    else:
        _export(take_options(ExportRun))


def _inspect(options: InspectRun) -> None:
    from fer_runtime.model.inspect import inspect_model

    facts = inspect_model(options.inspected)
    say(json.dumps(facts.to_dict(), indent=1) if options.as_json else facts.to_text())


def _export(options: ExportRun) -> None:
    if options.model is None and options.name is None and options.checkpoint is None:
        raise click.UsageError(f"Missing option '--model' or '--name'. Models: {', '.join(ARCHITECTURES)}.")
    # PyTorch loads slowly and edge devices lack it; --help needs neither.
    with needs_extra("export"), collector_stopped():
        from fer_export.gate.report import ExportRefusedError
        from fer_export.pipeline import export_model
        from fer_train.checkpoints import stated_network

    check_models_dir(options.models_dir)
    model = _network(options.model)
    name = options.name or model or ""
    source = options.checkpoint or _named_checkpoint(options.models_dir, name, model)
    model = model or stated_network(source)
    if find_architecture(model).is_foreign and options.name is None:
        raise click.UsageError(f"{model} has no files of its own; name yours: --name mine")

    with _signed(options.sign, ExportRefusedError) as show:
        report = export_model(
            model,
            _export_options(options),
            own_name=options.name,
            checkpoint=options.checkpoint,
            labels=options.labels,
            opset=options.opset,
        )
        show(report)


def _named_checkpoint(models_dir: Path, name: str, model: str | None) -> Path:
    """The checkpoint of that name.

    Raises:
        CheckpointError: there is none; the error names those that are there.
    """
    path = checkpoint_path(models_dir, name)
    if os.path.lexists(path):  # what else is wrong with it is said where it is read
        return path
    there = checkpoint_names(models_dir)
    some = ", ".join([*there[:_NAMED], *([f"{len(there) - _NAMED} more"] if len(there) > _NAMED else [])])
    command = f"fer-train --model {model or 'NAME'}" + ("" if name == model else f" --name {name}")
    raise CheckpointError(
        f"no checkpoint named {name}: {path} is not there, and the folder has {some or 'no others'}; give another "
        f"--models-dir, or train it with: {command}"
    )


def _adopt(options: AdoptRun) -> None:
    if options.faces is None:
        raise click.UsageError("--adopt needs --input: the colour and size of its faces, such as gray64")
    if options.pixel_range is None and options.mean is None and options.std is None:
        raise click.UsageError("--adopt needs --range, or --mean and --std: the numbers that its pixels become")
    if options.temperature is not None and options.data is not None:
        raise click.UsageError("--temperature is fitted to --data; leave one of them out")
    check_models_dir(options.models_dir)
    name = options.name or own_name(click.get_current_context(), _parameter("name"), options.adopted.stem)
    with needs_extra("export"), collector_stopped():
        from fer_export.adopt.inputs import FaceInput, parse_input
        from fer_export.adopt.publish import adopt_model
        from fer_export.gate.report import ExportRefusedError
    black, white = options.pixel_range or (0.0, 1.0)
    try:
        color, size = parse_input(options.faces)
        faces = FaceInput(
            color=color,
            size=size,
            low=black,
            high=white,
            mean=options.mean or (0.0,),
            std=options.std or (1.0,),
            layout=options.layout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _signed(options.sign, ExportRefusedError) as show:
        report = adopt_model(
            options.adopted,
            _export_options(options),
            name=str(name),
            faces=faces,
            labels=options.labels,
            scores=options.scores,
            temperature=options.temperature,
        )
        show(report)


def _export_options(options: ExportRun | AdoptRun) -> ExportOptions:
    from fer_export.options import ExportOptions

    return ExportOptions(
        precisions=options.precisions or ("fp32",),
        data=options.data,
        votes=options.votes,
        batch=options.batch,
        models_dir=options.models_dir,
        budget=_budget(options.budget),
        keep_anyway=options.keep_anyway,
        replace=options.replace,
        progress=lambda text: say(text, err=True),
    )


def _network(model: str | None) -> str | None:
    """The value of --model as the name of a network."""
    try:
        return None if model is None else find_architecture(model).name
    except ValueError as error:
        message = f"{error}. A model of your own is exported with --name {model}"
        raise click.BadParameter(message, click.get_current_context(), _parameter("model")) from None


def _parameter(name: str) -> click.Parameter:
    return next(parameter for parameter in click.get_current_context().command.params if parameter.name == name)


@contextmanager
def _signed(path: Path | None, refused: type[Any]) -> Iterator[Callable[[ExportReport], None]]:
    """Gives what shows a report and signs its files; shows the report of a refused export as well.

    Args:
        path: of the private key, which is read before the work of an export; None signs nothing.
        refused: ExportRefusedError.
    """
    from fer_runtime.model.signature import signature_path

    key = None
    if path is not None:
        with needs_extra("sign"):
            from fer_runtime.model.signature import load_private_key, sign_file

            key = load_private_key(path)

    def show(report: ExportReport) -> None:
        show_export(report)
        for model in report.models if key is not None else ():
            if model.is_published:
                say(f"signed: {sign_file(model.path, key)}")
        for model in report.models if key is None else ():
            if model.is_published and os.path.lexists(old := signature_path(model.path)):
                say(printable(f"{old} is of the file before; sign this one, too: --sign KEY"), err=True)

    try:
        yield show
    except refused as error:
        show_export(error.report)
        raise


def _convert(options: TargetRun) -> None:
    if options.name is None and options.model is None:
        raise click.UsageError(f"Missing option '--model'. Choose from: {', '.join(ARCHITECTURES)}.")
    with needs_extra("export"), collector_stopped():
        from fer_export.targets.publish import TargetRefusedError, convert_model
    check_models_dir(options.models_dir)
    try:
        with _needs_converter():
            reports = convert_model(
                options.name or options.model,
                targets=tuple(dict.fromkeys(options.targets)),
                precisions=tuple(dict.fromkeys(options.precisions)),
                models_dir=options.models_dir,
                data=options.data,
                budget=_budget(options.budget),
                replace=options.replace,
                progress=lambda text: say(text, err=True),
            )
    except TargetRefusedError as error:
        show_targets(error.reports)
        raise
    show_targets(reports)


@contextmanager
def _needs_converter() -> Iterator[None]:
    """Turn the ImportError of a converter's package into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        target = next((target for target in TARGETS.values() if module in target.converters), None)
        if target is None:
            raise
        raise ExtraMissingError(
            f"--target {target.name} needs {module}, which is not installed; "
            f"install it with: {target.install_converter}"
        ) from error


def _site(options: SiteRun) -> None:
    from fer_export.site.server import create_server
    from fer_export.site.write import write_site
    from fer_runtime.model.find import find_model, is_model_file

    if len(options.precisions) > 1:
        raise click.UsageError("--site runs one model; give --precision once")
    precision: Precision | None = options.precisions[0] if options.precisions else "int8"
    if is_model_file(options.name or options.model):  # which has its own; the rule refuses another
        precision = None
    try:
        path = find_model(options.name or options.model, precision=precision, models_dir=options.models_dir)
    except ModelFileError:
        if options.precisions or precision is None:
            raise
        # A model whose int8 file did not pass its gate has none.
        path = find_model(options.name or options.model, precision="fp32", models_dir=options.models_dir)
    written = write_site(options.site, model=path, ort_web=options.ort_web, yunet=options.yunet)
    finder = "YuNet finds the faces" if written.has_detector else "a frame for one face; --yunet FILE finds faces"
    say(f"{options.site}  {path.name}, {written.site_bytes / 1e6:.1f} MB, {finder}")
    if options.serve:
        with create_server(options.site) as server:
            say(f"http://127.0.0.1:{server.server_address[1]}/  stop with Ctrl-C")
            with suppress(KeyboardInterrupt):
                server.serve_forever()


def _budget(text: str) -> Budget:
    from fer_export.gate.accuracy import Budget

    try:
        accuracy, macro_f1, recall = (float(part) for part in text.split(","))
        if not math.isfinite(accuracy + macro_f1 + recall):
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text!r} is not three numbers such as 0.5,0.5,2", param_hint="--budget") from None
    return Budget(accuracy=accuracy, macro_f1=macro_f1, recall=recall)
