"""The command `lpg-hf`: parse, call, write; no logic of its own.

Everything heavy is imported inside the commands, so that `lpg-hf --help` answers at once.
"""

import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from lpg_hf.data.options import ReadOptions

app = typer.Typer(
    name="lpg-hf",
    help="Pixel masks from box labels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


# What is read
_Source = Annotated[
    str,
    typer.Argument(
        metavar="ANNOTATIONS",
        help="COCO json, VOC folder or xml, YOLO folder or data.yaml, a label tool's export, or a dataset: folder or "
        "Hub id.",
    ),
]
_Images = Annotated[Path | None, typer.Option(help="Image folder, if it is not the usual one.")]
_AnyFormat = Annotated[str, typer.Option(help="auto, coco, voc, yolo, dataset, or a tool's (docs/formats.md).")]
_Split = Annotated[str | None, typer.Option(help="VOC list, YOLO split, or split of a dataset.")]
_ZeroBased = Annotated[
    bool, typer.Option("--zero-based", help="VOC corners are 0-based and end exclusive, as some tools write them.")
]
_ObjectValue = Annotated[
    int | None,
    typer.Option(
        help="Class masks mark the objects with this value, e.g. 255: in each image of one class (eval: label 1).",
        min=1,
        max=65535,
    ),
]
_BoxFormat = Annotated[
    str | None,
    typer.Option(
        help="Boxes of a dataset or COCO file: xywh, xyxy, cxcywh, yolo or voc. Default: xywh. YOLO labels: obb, for "
        "lines of eight numbers that are rotated boxes."
    ),
]
_Encoding = Annotated[str | None, typer.Option(help="Of text files that are not UTF-8, e.g. cp1252 or gbk.")]
_StoredFrame = Annotated[
    bool, typer.Option("--stored-frame", help="Labels fit the images as stored, before their EXIF rotation.")
]
_Bands = Annotated[
    str | None,
    typer.Option(
        help="Bands of the images that are red, green and blue, such as 4,3,2, or one that is grey. Default: 1,2,3."
    ),
]
_Stretch = Annotated[
    str | None,
    typer.Option(
        help="Values that become black and white: none (the range of the type), bits (of as many bits as "
        "are used), minmax, 2%,98% or 0,4095. Default: bits; floats: 2%,98%."
    ),
]
_SkipAmbiguous = Annotated[
    bool, typer.Option("--skip-ambiguous", help="COCO: leave out all images that share an id, instead of an error.")
]
_SizeMismatch = Annotated[
    str, typer.Option(help="If the stated size of an image is not its own: skip, error, or rescale the boxes.")
]
_MaxPixels = Annotated[int | None, typer.Option(help="Skip larger images; default: 178956970.", min=1)]
_Limit = Annotated[
    int | None,
    typer.Option(help="At most this many images (prepare-data: of each split), evenly.", min=1),
]
_ClassNames = Annotated[
    str | None,
    typer.Option(
        help="Class names in the order of the labels: a file with one per line (or CVAT's labelmap.txt), or a "
        "comma-separated list."
    ),
]
# What runs
_Model = Annotated[
    str | None,
    typer.Option(
        help="LPG stage: Hub id, folder, or lpg-small, which comes with the package like lpg-base, the default."
    ),
]
_Segmenter = Annotated[
    str | None, typer.Option(help="Segmenter for an LPG that uses its class probability: Hub id or folder.")
]
_Flip = Annotated[
    bool, typer.Option("--flip", help="LPG: also look at each view mirrored: better masks in twice the time.")
]
_Clean = Annotated[
    bool, typer.Option(help="Drop parts below 2 % of a mask that are not connected to it, and fill such holes.")
]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; default: a GPU if there is one.")]
_Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16; auto: bfloat16 where the hardware computes in it.")
]
_NumWorkers = Annotated[int | None, typer.Option(help="Threads; default: by the number of cores.", min=1)]


def _new_result(path: str | None) -> str | None:
    """A name for --json.

    Raises:
        ValueError: a file that --json did not write is there: it could be what the command reads.
    """
    from lpg_hf._files import fs_path, read_head

    # /dev/stdout may lead to a file, which is written to.
    if path is None or path.startswith("/dev/") or not os.path.isfile(fs_path(path)):
        return path
    if os.path.getsize(fs_path(path)) and not re.match(_RESULT, read_head(path, 100)):
        raise ValueError(f"{path} exists, and is no result that --json wrote. Move it away, or choose another name")
    return path


# What is written. First how a result of `check`, `eval` and `compare` begins.
_RESULT = r'\{\s*"(images": \d|kind": "(label_maps|box_masks)"|job": \{)'
_JsonFile = Annotated[str | None, typer.Option("--json", callback=_new_result, help="Write the result to this file.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Send nothing; list what would be sent.")]
_Private = Annotated[bool, typer.Option("--private", help="Make new repositories private.")]
_PushRevision = Annotated[str | None, typer.Option(help="Branch to push to; default: main.")]
_Simplify = Annotated[
    float, typer.Option(help="Outlines: with fewer points, this near to the mask in pixels; 0: every pixel again.")
]
_PlaceImages = Annotated[
    str, typer.Option("--with-images", help="YOLO, LabelMe: link or copy each image into OUT, or none.")
]
# Of export-data and push-data
_Format = Annotated[str, typer.Option(help="coco, voc or yolo.")]
_Root = Annotated[Path | None, typer.Option(help="Folder of the dataset.")]
_Annotations = Annotated[
    list[str] | None,
    typer.Option(help="COCO: json file, one for each --split. VOC: other folder of xml files. YOLO: data.yaml."),
]
_Splits = Annotated[list[str] | None, typer.Option(help="Name of a split; may be repeated. Default: train.")]
_Classes = Annotated[
    str | None, typer.Option(help="COCO: nonvoc60, voc20, all80. Every format: all, or comma-separated names.")
]
_Masks = Annotated[bool, typer.Option("--masks", help="Write the masks too.")]
_EmbedImages = Annotated[
    bool, typer.Option("--embed-images", help="Embed the image files. Publish them only if their licences allow it.")
]
_KeepEmpty = Annotated[bool, typer.Option("--keep-empty", help="Keep images without an object of the classes.")]
_AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Skip images that do not exist.")]
_Title = Annotated[str | None, typer.Option(help="Title of the card. Default: the name of the folder or repository.")]


# Options of `ReadOptions` that every command which reads annotations has: name -> (type, default).
_READ_FLAGS: dict[str, tuple[Any, Any]] = {
    "zero_based": (_ZeroBased, False),
    "object_value": (_ObjectValue, None),
    "skip_ambiguous": (_SkipAmbiguous, False),
    "box_format": (_BoxFormat, None),
    "encoding": (_Encoding, None),
    "stored_frame": (_StoredFrame, False),
    "bands": (_Bands, None),
    "stretch": (_Stretch, None),
}


def _reads(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_READ_FLAGS`, which it gets as one dict, `read_flags`."""
    own = inspect.signature(command)
    kept = [parameter for name, parameter in own.parameters.items() if name != "read_flags"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _READ_FLAGS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        read_flags = {name: given.pop(name) for name in _READ_FLAGS}
        command(**given, read_flags=read_flags)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept]
    vars(run)["__signature__"] = own.replace(parameters=[*parameters, *added])
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *added]}
    return run


def _read_options(
    split: str | None, read_flags: dict, max_pixels: int | None, size_mismatch: str = "skip", masks: bool = False
) -> "ReadOptions":
    """How a command that takes `_Source` reads it."""
    from lpg_hf.data.options import SOURCE_OPTIONS
    from lpg_hf.images import MAX_PIXELS

    return replace(
        SOURCE_OPTIONS,
        split=split,
        masks=masks,
        size_mismatch=size_mismatch,
        max_pixels=max_pixels or MAX_PIXELS,
        **read_flags,
    )


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error occurred.")] = False,
) -> None:
    """Pixel masks from box labels."""


@app.command("masks")
@_reads
def masks(
    annotations: _Source,
    out: Annotated[Path, typer.Option(help="Folder for the masks; an interrupted run resumes there.")],
    images: _Images = None,
    model: _Model = None,
    generator: Annotated[
        str,
        typer.Option(
            help="lpg, grabcut, densecrf, box, sam:ID, or saliency:FILE.onnx; auto: the best on true masks that the "
            "annotations have."
        ),
    ] = "lpg",
    format: _AnyFormat = "auto",
    write: Annotated[
        str,
        typer.Option(
            help="Comma-separated: png, coco, coco-polygons, coco-results, yolo, labelme, instances-png, crops, "
            "geotiff, geojson, html (the masks with the lowest scores, to look at first). "
            "A later run may add some: the masks are kept."
        ),
    ] = "png",
    with_images: _PlaceImages = "link",
    simplify: _Simplify = 2.0,
    per: Annotated[
        str | None,
        typer.Option(
            help="class or instance. Default: class if only png, geotiff or html are written, else instance."
        ),
    ] = None,
    segmenter: _Segmenter = None,
    tighten_boxes: Annotated[
        bool, typer.Option("--tighten-boxes", help="COCO: also the box of each mask, as mask_bbox beside bbox.")
    ] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write images with masks and boxes drawn in.")
    ] = False,
    min_score: Annotated[
        float,
        typer.Option(help="Reject masks with a lower score; label maps ignore their boxes where no other mask is."),
    ] = 0.0,
    overlap_rule: Annotated[
        str, typer.Option(help="Which class keeps a pixel that several claim: rate, first, prob or smallest_box.")
    ] = "rate",
    exclusive: Annotated[
        bool,
        typer.Option("--exclusive", help="Masks that share no pixel: --overlap-rule decides for objects too."),
    ] = False,
    threshold: Annotated[float, typer.Option(help="Foreground probability above which a pixel is in the mask.")] = 0.5,
    clean: _Clean = True,
    grow_boxes: Annotated[
        float, typer.Option(help="Boxes known to be too small: 0.1 moves every edge out by a tenth; too large: -0.1.")
    ] = 0.0,
    classes: _Classes = None,
    limit: _Limit = None,
    split: _Split = None,
    size_mismatch: _SizeMismatch = "skip",
    max_pixels: _MaxPixels = None,
    flip: _Flip = False,
    batch_size: Annotated[
        int, typer.Option(help="Images taken together; a forward pass has up to twice as many views.")
    ] = 8,
    num_workers: _NumWorkers = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run wrote to OUT, and start again.")
    ] = False,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Make a mask for every box of a dataset. Finished blocks of images are skipped.

    Exit status: 0 success; 1 images or objects were skipped (OUT/report.json names them): label maps ignore their
    regions; 2 nothing could be done. Under `accelerate launch` the processes share the images.

    Example: `lpg-hf masks instances.json --images photos --out masks --write png,coco --overlay`
    """
    from lpg_hf.data.report import Report
    from lpg_hf.data.sources import open_source
    from lpg_hf.generators import NamedGenerator
    from lpg_hf.generators.base import GeneratorOptions
    from lpg_hf.masks.writer import MaskSettings, Processes, digest_of_run, write_masks

    outputs = tuple(name.strip() for name in write.split(",") if name.strip())
    settings = MaskSettings(
        outputs,
        per,
        overlay,
        batch_size,
        generator,
        with_images,
        simplify,
        tighten_boxes,
        grow_boxes,
        overlap_rule=overlap_rule,
        threshold=threshold,
        min_score=min_score,
        clean=clean,
        exclusive=exclusive,
    )
    if generator == "lpg" and model is None:
        typer.echo("no --model: using lpg-base, which comes with the package")
    report = Report()
    options = replace(_read_options(split, read_flags, max_pixels, size_mismatch), classes=classes)
    source = open_source(annotations, images, options, format=format, report=report).limited(limit)
    names = tuple(name for _, name in source.classes)
    loaded = GeneratorOptions(model, segmenter, names, 2 * batch_size, flip, device, dtype, revision)
    if generator == "auto":
        from lpg_hf.evaluation.choose import choose_generator
        from lpg_hf.evaluation.compare import ComparedData

        place = None if images is None else str(images)
        data = ComparedData(annotations, place, None, format, options, options.object_value)
        begun = None if overwrite else digest_of_run(out)
        generator, loaded = choose_generator(data, loaded, typer.echo, begun)
        settings = replace(settings, generator=generator)
    written = write_masks(
        source,
        NamedGenerator(generator, loaded),
        out,
        settings,
        report=report,
        overwrite=overwrite,
        processes=Processes.of_launch(num_workers),
    )
    if written is not None:
        typer.echo(written.summary())
        typer.echo(f"written to {out}")
        raise typer.Exit(1 if written.is_incomplete or written.errors else 0)


@app.command("finetune")
@_reads
def _finetune(
    annotations: _Source,
    out: Annotated[Path, typer.Option(help="New folder of the generator; the same command resumes.")],
    images: _Images = None,
    model: Annotated[
        str, typer.Option(help="LPG stage to start from: lpg-base, lpg-small, Hub id or folder.")
    ] = "lpg-small",  # with which the recipe was measured
    steps: Annotated[
        int | None, typer.Option(help="Training steps of 16 boxes; default: by the number of boxes.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the held-out images and of the training.", min=0)] = 0,
    format: _AnyFormat = "auto",
    split: _Split = None,
    size_mismatch: _SizeMismatch = "skip",
    max_pixels: _MaxPixels = None,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Train the mask generator on your own masks. It is kept only if it is better on masks that were held out.

    Prints the IoU per box before and after on the held-out images; OUT/panel.png shows some of them. Afterwards use
    `lpg-hf masks --model OUT`.

    Example: `lpg-hf finetune my.json --images photos --out my-lpg`
    """
    from lpg_hf.training._own_data import OwnJob
    from lpg_hf.training.finetune import finetune

    options = _read_options(split, read_flags, max_pixels, size_mismatch, masks=True)
    finetune(OwnJob(annotations, out, images, format, options, model, steps, seed), typer.echo)


@app.command("train")
@_reads
def _train(
    annotations: _Source,
    out: Annotated[Path, typer.Option(help="New folder of the segmenter; the same command resumes.")],
    images: _Images = None,
    segmenter: Annotated[
        str,
        typer.Option(
            help="small (random weights, any machine), largefov, deeplab-v2, or a Hub id, folder or config.json."
        ),
    ] = "small",
    weights: Annotated[str | None, typer.Option(help="ImageNet weights of largefov or deeplab-v2.")] = None,
    model: Annotated[
        str, typer.Option(help="LPG stage that makes the masks: lpg-base, lpg-small, Hub id or folder.")
    ] = "lpg-base",
    steps: Annotated[
        int | None, typer.Option(help="Training steps of 8 images; default: by the number of images.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the held-out images and of the training.", min=0)] = 0,
    format: _AnyFormat = "auto",
    split: _Split = None,
    size_mismatch: _SizeMismatch = "skip",
    max_pixels: _MaxPixels = None,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Train a segmenter on boxes: masks by an LPG, and the segmenter on these masks.

    Where ANNOTATIONS has true masks too, they are not trained on: the segmenter is measured on those of a part that is
    held out. The folder loads with `AutoModelForSemanticSegmentation`; `lpg-hf segment` uses it.

    Example: `lpg-hf train boxes.json --images photos --segmenter nvidia/mit-b0 --out my-segmenter`
    """
    from lpg_hf.training._own_data import OwnJob
    from lpg_hf.training._train_on_boxes import train_on_boxes

    options = _read_options(split, read_flags, max_pixels, size_mismatch, masks=True)
    job = OwnJob(annotations, out, images, format, options, model, steps, seed)
    train_on_boxes(job, segmenter, weights, typer.echo)


@app.command("segment")
def _segment(
    model: Annotated[str, typer.Argument(help="Segmenter: folder or Hub id.")],
    images: Annotated[Path, typer.Argument(help="Folder of images; with --split: annotations of any format.")],
    out: Annotated[Path, typer.Option(help="Folder for the label maps; an interrupted run resumes there.")],
    split: _Split = None,
    scales: Annotated[
        str, typer.Option(help="Sizes of each image to average over, such as 0.5,0.75,1,1.25,1.5.")
    ] = "1",
    crf: Annotated[bool, typer.Option("--crf", help="Refine with a dense CRF. Needs the extra `crf`.")] = False,
    truth: Annotated[Path | None, typer.Option(help="Folder of true label maps: also print the mIoU.")] = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    max_pixels: _MaxPixels = None,
    bands: _Bands = None,
    stretch: _Stretch = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", callback=_new_result, help="Write the result of --truth to this file."),
    ] = None,
) -> None:
    """Predict label maps with a trained segmenter: OUT/masks/NAME.png, and the classes in OUT/classes.txt.

    Exit status: 0 success; 1 some images cannot be used, and the others are done.

    Example: `lpg-hf segment my-segmenter VOC2012 --split val --crf --out predicted --truth VOC2012/SegmentationClass`
    """
    from lpg_hf._bands import Rendering
    from lpg_hf._files import write_json
    from lpg_hf.evaluation.evaluate import evaluate
    from lpg_hf.images import MAX_PIXELS
    from lpg_hf.training.segment import SegmentJob, segment

    if json_file is not None and truth is None:
        raise ValueError("--json is for the mIoU, which needs true label maps. Pass --truth, or leave --json out")
    numbers = tuple(_number(text) for text in scales.split(","))
    rendering = Rendering(bands, stretch)
    job = SegmentJob(model, images, out, split, numbers, crf, device, dtype, max_pixels or MAX_PIXELS, rendering)
    bad = segment(job)
    for line in bad:
        typer.echo(f"skipped: {line}")
    typer.echo(f"written to {out}")
    if truth is not None:
        result = evaluate(out / "masks", truth, classes=out / "classes.txt")
        typer.echo(result.text())
        if json_file is not None:
            write_json(json_file, result.as_dict())
    raise typer.Exit(1 if bad else 0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"scales={text!r} is not a number. Pass numbers with commas, such as 0.5,1,1.5.") from None


@app.command("check")
@_reads
def check(
    annotations: _Source,
    images: _Images = None,
    format: _AnyFormat = "auto",
    split: _Split = None,
    masks: Annotated[bool, typer.Option("--masks", help="Check the masks too.")] = False,
    decode: Annotated[bool, typer.Option(help="Decode every image, or read headers only.")] = True,
    max_pixels: _MaxPixels = None,
    num_workers: _NumWorkers = None,
    json_file: _JsonFile = None,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Look at every image and object of a dataset, and count the problems.

    Annotations of images that do not exist are checked too, with their boxes against the stated sizes.

    Exit status: 0 nothing needs attention; 1 problems found; 2 the annotations cannot be read.

    Example: `lpg-hf check instances.json --images photos --masks --json report.json`
    """
    from lpg_hf.data.check import check_source

    checked = check_source(
        annotations,
        images,
        _read_options(split, read_flags, max_pixels, masks=masks),
        format=format,
        decode=decode,
        num_workers=num_workers,
        progress=sys.stderr.isatty(),
    )
    typer.echo(_with_option_names(checked.summary(), "check"))
    if json_file is not None:
        checked.report.save(json_file)
    raise typer.Exit(0 if checked.passed else 1)


@app.command("convert-labels")
@_reads
def convert_labels(
    annotations: _Source,
    out: Annotated[str, typer.Argument(help="New folder, or json file for COCO; it must not exist yet.")],
    to: Annotated[str, typer.Option(help="coco, voc or yolo.")],
    format: _AnyFormat = "auto",
    images: _Images = None,
    split: _Split = None,
    masks: Annotated[bool, typer.Option(help="Write the masks too.")] = True,
    max_pixels: _MaxPixels = None,
    with_images: Annotated[
        str | None, typer.Option(help="YOLO: link (the default) or copy each image into OUT, or none.")
    ] = None,
    simplify: _Simplify = 0.0,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Write labels in another format, and report what it cannot hold. YOLO output gets the images too.

    Exit status: 0 success, also where the new format cannot hold something ("lost"); 1 problems found; 2 nothing was
    written.

    Example: `lpg-hf convert-labels instances.json labels_yolo --to yolo --images photos`
    """
    from lpg_hf.data._formats.yolo_dataset import YoloOptions
    from lpg_hf.data.convert import convert_labels as convert_all

    options = _read_options(split, read_flags, max_pixels, masks=masks)
    yolo = YoloOptions(with_images or "link", simplify)
    if to != "yolo" and with_images not in (None, "none"):
        raise ValueError(f"with_images={with_images!r} is for YOLO: {to} gets no images. Leave it out")
    done = convert_all(annotations, out, to, images=images, options=options, format=format, yolo_options=yolo)
    typer.echo(done.summary())
    raise typer.Exit(1 if done.report.needs_attention else 0)


@app.command("push-run")
def _push_run(
    run_dir: Annotated[Path, typer.Argument(help="Run folder of training/em.py and training/deploy.py.")],
    org: Annotated[str, typer.Option(help="Organisation or user on the Hub.")],
    prefix: Annotated[
        str, typer.Option(help="Repositories are ORG/PREFIX-stageN and ORG/PREFIX-segmenter-stageN.")
    ] = "lpg",
    private: _Private = False,
    revision: _PushRevision = None,
    dry_run: _DryRun = False,
) -> None:
    """Push the generators of a run and the segmenters of its target to the Hub.

    Each repository gets one commit, or none if nothing changed.

    Example: `lpg-hf push-run runs/demo --org my-name --dry-run`
    """
    from lpg_hf.hub import PushOptions, push_run

    report = push_run(run_dir, org, prefix, PushOptions(private, revision, dry_run), log=typer.echo)
    if dry_run:
        for pushed in report.repos:
            typer.echo(f"{pushed.repo_id}: {', '.join(f'{name} ({size})' for name, size in pushed.files.items())}")
    elif report.collection or report.note:
        typer.echo(f"collection {report.collection}" if report.collection else report.note)


@app.command("pull-run")
def _pull_run(
    run_id: Annotated[str, typer.Argument(metavar="ORG/PREFIX", help="Organisation and prefix of the stages.")],
    out: Annotated[Path, typer.Option(help="Run folder to fill; `training/deploy.py --run.stages OUT` takes it.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: main.")] = None,
) -> None:
    """Download all stages of a run from the Hub to a run folder.

    Example: `lpg-hf pull-run my-name/lpg --out runs/pulled`
    """
    from lpg_hf.hub import pull_run

    pull_run(run_id, out, revision, log=typer.echo)


@app.command("export-data")
@_reads
def _export_data(
    out: Annotated[Path, typer.Argument(help="New folder; it must not exist, or be empty.")],
    format: _Format,
    root: _Root = None,
    annotations: _Annotations = None,
    images: _Images = None,
    split: _Splits = None,
    classes: _Classes = None,
    masks: _Masks = False,
    embed_images: _EmbedImages = False,
    keep_empty: _KeepEmpty = False,
    allow_missing: _AllowMissing = False,
    num_workers: Annotated[int, typer.Option(help="Processes that check the images.", min=1)] = 1,
    title: _Title = None,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Write annotations as Parquet files with a card, which `load_dataset` reads without this package.

    Exit status: 0 success; 1 images, objects or masks were skipped; 2 nothing was written.

    Example: `lpg-hf export-data voc_boxes --format voc --root VOC2012 --split train --split val --masks`
    """
    from lpg_hf.data.export import Export, write_dataset
    from lpg_hf.data.options import ReadOptions
    from lpg_hf.data.report import Report

    report = Report()
    export = Export(format, root, annotations or (), images, split or (), embed_images, title)
    options = ReadOptions(
        classes=classes, masks=masks, keep_empty=keep_empty, allow_missing=allow_missing, **read_flags
    )
    num_rows = write_dataset(out, export, options, num_proc=num_workers, report=report)
    typer.echo(report.summary())
    typer.echo(f"wrote {num_rows} rows to {out}")
    raise typer.Exit(1 if report.is_incomplete or report.lost_masks else 0)


@app.command("push-data")
@_reads
def push_data(
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The dataset on the Hub.")],
    format: _Format,
    root: _Root = None,
    annotations: _Annotations = None,
    images: _Images = None,
    split: _Splits = None,
    classes: _Classes = None,
    masks: _Masks = False,
    embed_images: _EmbedImages = False,
    keep_empty: _KeepEmpty = False,
    allow_missing: _AllowMissing = False,
    num_workers: Annotated[int, typer.Option(help="Processes that check the images.", min=1)] = 1,
    title: _Title = None,
    private: _Private = False,
    revision: _PushRevision = None,
    dry_run: _DryRun = False,
    *,
    read_flags: dict[str, Any],
) -> None:
    """Push COCO, VOC or YOLO annotations as the dataset that `lpg-hf export-data` writes.

    Example: `lpg-hf push-data my-name/voc-boxes --format voc --root VOC2012 --split train --split val --masks`
    """
    from lpg_hf.data.export import Export
    from lpg_hf.data.options import ReadOptions
    from lpg_hf.data.report import Report
    from lpg_hf.hub import PushOptions, push_data

    report = Report()
    export = Export(format, root, annotations or (), images, split or (), embed_images, title)
    options = ReadOptions(
        classes=classes, masks=masks, keep_empty=keep_empty, allow_missing=allow_missing, **read_flags
    )
    pushed = push_data(
        repo_id,
        export,
        PushOptions(private, revision, dry_run),
        options=options,
        num_proc=num_workers,
        report=report,
    )
    typer.echo(report.summary())
    done = "would hold" if dry_run else f"{(pushed.commit or '')[:7]} {'pushed' if pushed.is_new else 'unchanged'}:"
    typer.echo(f"{repo_id} {done} {', '.join(f'{name} ({size})' for name, size in pushed.files.items())}")
    raise typer.Exit(1 if report.is_incomplete or report.lost_masks else 0)


@app.command("prepare-data")
def _prepare_data(
    what: Annotated[str, typer.Argument(metavar="coco60|voc-aug|weights", help="What to prepare.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; the paper's configurations read `data`.")],
    archives: Annotated[Path | None, typer.Option(help="Folder of the archives; default: OUT/archives.")] = None,
    limit: _Limit = None,
    long_side: Annotated[
        int | None, typer.Option(help="Reduce larger images to this long side, with their boxes and masks.", min=1)
    ] = None,
    check: Annotated[bool, typer.Option(help="Compare the archives with the published sizes and checksums.")] = True,
) -> None:
    """Turn the official archives of COCO, VOC and SBD into the folders that the paper's configurations read.

    Nothing is downloaded. What is finished is skipped, and an interrupted run resumes. `voc-aug` needs the extra
    `prepare`.

    Example: `lpg-hf prepare-data voc-aug --out data --archives Downloads`
    """
    from lpg_hf.data._prepare import PrepareOptions, prepare

    prepare(what, PrepareOptions(out, archives, limit, long_side, check=check, log=typer.echo))


@app.command("eval")
def _eval(
    prediction: Annotated[str, typer.Argument(help="Folder of label maps (PNG), or COCO json.")],
    truth: Annotated[str, typer.Argument(help="Ground truth of the same kind.")],
    class_names: _ClassNames = None,
    ignore: Annotated[
        int | None,
        typer.Option(help="Label of the ground truth that counts nowhere [default: 255; 65535 in 16-bit maps]."),
    ] = None,
    num_workers: _NumWorkers = None,
    max_pixels: _MaxPixels = None,
    object_value: _ObjectValue = None,
    json_file: _JsonFile = None,
) -> None:
    """Compare masks with ground truth: mIoU of label maps, or IoU per box of COCO masks.

    Exit status: 0 success; 1 some files or masks cannot be used, and the others are scored.

    Example: `lpg-hf eval masks VOC2012/SegmentationClass --class-names classes.txt --json scores.json`
    """
    from lpg_hf._files import write_json
    from lpg_hf.evaluation.evaluate import evaluate
    from lpg_hf.images import MAX_PIXELS

    result = evaluate(
        prediction,
        truth,
        classes=class_names,
        ignore=ignore,
        num_workers=num_workers,
        max_pixels=max_pixels or MAX_PIXELS,
        object_value=object_value,
    )
    typer.echo(result.text())
    if json_file is not None:
        write_json(json_file, result.as_dict())
    raise typer.Exit(1 if result.bad else 0)


@app.command("convert-checkpoint")
def _convert_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="Official .pth or .safetensors; with --to-official, our folder.")],
    out: Annotated[Path, typer.Argument(help="The new folder; with --to-official, the new .pth or .safetensors.")],
    kind: Annotated[
        str | None, typer.Option(help="lpg, largefov or deeplab-v2; default: by the names of the weights.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(help="Checked against the weights.")] = None,
    class_names: _ClassNames = None,
    pad: Annotated[
        int, typer.Option(help="LPG: pad smaller images to this side (official: VOC 512, COCO 640); 0: no padding.")
    ] = 512,
    to_official: Annotated[bool, typer.Option("--to-official", help="Convert to the official format.")] = False,
) -> None:
    """Convert a checkpoint of the method's official code to this package, or back.

    Example: `lpg-hf convert-checkpoint LPG_Round2.pth models/lpg-round2 --kind lpg`
    """
    from lpg_hf import convert_official as converter
    from lpg_hf.evaluation.evaluate import class_list

    if to_official:
        typer.echo(f"written to {converter.to_official(checkpoint, out)}")
        return
    names = class_list(class_names)
    unused = converter.convert(checkpoint, out, kind, num_labels=num_labels, classes=names, view_min_size=pad or None)
    for name, reason in unused.items():
        typer.echo(f"not used: {name} ({reason})")
    typer.echo(f"written to {out}")


@app.command("export-onnx")
def _export_onnx(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of an LPG or of a segmenter.")],
    out: Annotated[Path, typer.Option(help="The new file.")],
    opset: Annotated[int, typer.Option(help="ONNX operator set, 13 to 20.")] = 17,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="One size for all images, for models that need a fixed size."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compare with PyTorch at several sizes before anything is written.")
    ] = True,
) -> None:
    """Write an LPG or a segmenter as one ONNX model for any batch and image size.

    Example: `lpg-hf export-onnx runs/demo/aux/stage3/lpg --out lpg.onnx`
    """
    from lpg_hf.export_onnx import export_onnx

    for (batch, height, width), difference in export_onnx(model, out, opset=opset, size=size, check=check).items():
        typer.echo(f"batch {batch} of {height}x{width}: equal to PyTorch within {difference:.1e}")
    typer.echo(f"written to {out}")


@app.command("compare")
@_reads
def _compare(
    annotations: _Source,
    truth: Annotated[
        str | None,
        typer.Option(
            help="Ground truth: folder of label maps, or COCO json with masks. Default: masks of ANNOTATIONS."
        ),
    ] = None,
    images: _Images = None,
    generators: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: box, grabcut, densecrf, lpg, sam:ID, saliency:FILE.onnx. Default: the first four."
        ),
    ] = None,
    model: _Model = None,
    segmenter: _Segmenter = None,
    limit: _Limit = None,
    per: Annotated[
        str, typer.Option(help="class or instance: whether boxes of a class share their foreground.")
    ] = "instance",
    out: Annotated[str | None, typer.Option(help="Folder for comparison.md, comparison.json and panel.jpg.")] = None,
    json_file: _JsonFile = None,
    format: _AnyFormat = "auto",
    clean: _Clean = True,
    split: _Split = None,
    size_mismatch: _SizeMismatch = "skip",
    max_pixels: _MaxPixels = None,
    flip: _Flip = False,
    batch_size: Annotated[int, typer.Option(help="Views or boxes per forward pass.", min=1)] = 16,
    device: _Device = None,
    dtype: _Dtype = "auto",
    *,
    read_flags: dict[str, Any],
) -> None:
    """Run several generators on the same boxes: scores, time and memory in a table, masks in a panel.

    Skipped images are listed below the table.

    Exit status: 0 success; 1 a generator did not run, and the table says why.

    Example: `lpg-hf compare instances.json --images photos --generators box,lpg --out compared`
    """
    from lpg_hf._files import write_json
    from lpg_hf.evaluation.compare import ComparedData, Comparison, as_dict, compare, table, write
    from lpg_hf.generators.base import GeneratorOptions

    names = None if generators is None else [name.strip() for name in generators.split(",") if name.strip()]
    object_value = read_flags.pop("object_value")
    options = _read_options(split, read_flags, max_pixels, size_mismatch)
    place = None if images is None else str(images)
    data = ComparedData(annotations, place, truth, format, options, object_value)
    loaded = GeneratorOptions(model, segmenter, None, batch_size, flip, device, dtype)
    rows, chosen = compare(Comparison(data, loaded, per, clean=clean), names, limit=limit)
    typer.echo(table(rows))
    if out is not None:
        write(out, rows, chosen)
    if json_file is not None:
        write_json(json_file, as_dict(rows, chosen))
    raise typer.Exit(1 if any(row.error for row in rows) else 0)


@app.command("demo")
def demo(
    model: _Model = None,
    segmenter: _Segmenter = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Default: the first free one from 7860 on.", min=1, max=65535)
    ] = None,
    device: _Device = None,
    max_pixels: Annotated[int | None, typer.Option(help="Refuse larger images; default: 50000000.", min=1)] = None,
) -> None:
    """Serve a page that makes masks of the boxes that you draw, offline. Needs the extra `demo`.

    Example: `lpg-hf demo --model org/lpg-stage1`
    """
    from lpg_hf.demo import MAX_PIXELS, serve

    serve(
        model,
        segmenter,
        host=host,
        port=port,
        device=device,
        max_pixels=max_pixels or MAX_PIXELS,
        log=typer.echo,
    )


def _in_one_line(error: Exception, given: list[str]) -> str:
    """What a person can do about an error; a message of ours is left as it is."""
    from lpg_hf._files import MachineError, system_message

    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return system_message(error)
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # of a library in Rust
        return system_message(OSError(int(number[1]), str(error)))
    if isinstance(error, (OSError, ValueError, ImportError, MachineError)) and str(error):
        return str(error)
    text = " ".join(str(error).split()) or "no further detail"
    files = [word for word in given[1:] if os.path.exists(word)]
    return (
        f"an unexpected {type(error).__name__}: {text[:300]}. A file that it reads may be damaged"
        + (f" ({', '.join(files)})" if files else "")
        + "; `lpg-hf --debug ...` shows where it happened"
    )


@functools.cache
def _commands() -> dict:
    return getattr(typer.main.get_command(app), "commands", {})


def _with_option_names(message: str, command: str = "") -> str:
    """A message of the library in the names of the command line: max_pixels=9 becomes --max-pixels 9."""
    chosen = _commands().get(command)
    parameters = {item.name: item for item in getattr(chosen, "params", ())}

    def replaced(found: re.Match) -> str:
        option, value = parameters.get(found["name"]), found["value"]
        if option is None or (value is None and "_" not in found["name"]):
            return found[0]  # A word such as "split" may be just a word.
        if option.param_type_name == "argument":
            return found["name"].upper() if value == "..." else found[0]
        name = option.opts[0]
        if value in (None, "...", "[...]"):
            return name
        if value == "None":
            return f"no {name}"
        if option.is_flag and value in ("True", "False"):
            return name if value == "True" else next(iter(option.secondary_opts), f"no {name}")
        return f"{name} {value.strip(chr(39))}"

    value = r"=(?P<value>'[^']*'|\.\.\.|\[\.\.\.\]|-?\w+(?:\.\w+)*)"
    same = r"( \(--[a-z-]+(?: [^\s()]+)?\))?"  # the option, which the message names for readers of both
    return re.sub(rf"(?<![\w./-])(?P<name>[a-z_]+)(?:{value})?(?![\w/]){same}", replaced, message)


def _check_no_empty(given: list[str]) -> None:
    """Raises ValueError for an empty argument: a variable of a script that is not set would be the working folder."""
    for before, word in zip(["", *given], given):
        name, _, value = word.partition("=")
        if not word or (name.startswith("--") and name != word and not value):
            place = name if word else before if before.startswith("-") else "an argument"
            raise ValueError(f"{place} is empty. Pass a name or a value; the working folder is .")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; a user's mistake becomes one line and exit status 2, and so does any other error.

    Only `lpg-hf --debug COMMAND` shows the traceback.
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    given = sys.argv[1:] if arguments is None else arguments
    command = [word for word in given if not word.startswith("-")][:1]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A file name may hold bytes or letters that the terminal lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_no_empty(given)
        app(arguments)
    except Exception as error:  # Files of others lead libraries to errors of any type.
        if given[:1] == ["--debug"]:
            raise
        typer.echo(f"lpg-hf: {_with_option_names(_in_one_line(error, given), *command)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
