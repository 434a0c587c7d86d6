"""What a deployment measures and leaves for a reader: metrics.json, the stage table and the image panel."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from lpg_hf._files import write_json
from lpg_hf.data._examples import decode_image, label_map, row_boxes
from lpg_hf.data.load import class_names
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.training._labels import Labels, box_labels
from lpg_hf.training.config import public_settings
from lpg_hf.training.measure import measure_label_maps, measure_segmenter
from lpg_hf.training.models import load_segmenter, package_versions
from lpg_hf.training.run import Run
from lpg_hf.training.stages import Stage, add_metrics
from lpg_hf.visualize import draw_boxes, overlay, panel


_PANEL_ROWS = 6


class DeployScores:
    """What is measured in the rounds of a deployment, each thing once; a resumed run reads it from its file.

    Args:
        folder: of the target in the run.
        names: of the classes.
        truth: the target with masks; None: its pseudo masks are not measured.
        evaluation: what the segmenters are measured on; None: they are not.
    """

    def __init__(self, run: Run, folder: Path, names: list[str], truth: Dataset | None, evaluation: Dataset | None):
        self.run, self.folder, self.truth, self.evaluation = run, folder, truth, evaluation
        self.metrics = {
            "mode": run.settings.run.mode,
            "classes": names,
            "pseudo_mask_miou": {},
            "segmenter_miou": {},
            "box_fill_miou": None,
            "details": {"pseudo_masks": {}, "segmenter": {}},
        }

    def add_box_fill(self) -> None:
        """The filled boxes, which stage 0 is trained on."""
        measured = self._label_maps(self.folder / "box_fill.json", box_labels)
        if measured is not None:
            self.metrics["box_fill_miou"], self.metrics["details"]["box_fill"] = measured["mean_iou"], measured

    def add_pseudo_masks(self, stage: Stage, labels: Labels) -> None:
        """The pseudo masks of a stage."""
        measured = self._label_maps(stage.folder / "pseudo_masks.json", labels)
        if measured is not None:
            self._add("pseudo_mask_miou", "pseudo_masks", stage, measured)

    def add_segmenter(self, stage: Stage, segmenter: Path) -> None:
        """The segmenter of a stage, also in its own metrics and card."""
        run, evaluation = self.run, self.evaluation
        if evaluation is None:
            return

        def measure() -> dict:
            return measure_segmenter(run, *load_segmenter(segmenter), evaluation, f"{stage.name} measured")

        with_crf = "crf" in run.settings.run.measure
        measured = run.once(stage.folder / f"segmenter{'_crf' if with_crf else ''}.json", measure)
        self._add("segmenter_miou", "segmenter", stage, measured)
        values = {"segmenter_miou": measured["mean_iou"], "measured_on": f"{len(evaluation)} evaluation images"}
        if with_crf:
            values["segmenter_crf_miou"] = measured["crf"]["mean_iou"]
        add_metrics(run, segmenter, values)
        run.print(f"{stage.name}: segmenter {100 * measured['mean_iou']:.1f} mIoU")

    def write(self, rows: Dataset) -> dict:
        """Writes `metrics.json`, `table.md` and `panel.png`; returns the metrics."""
        settings, folder = self.run.settings, self.folder
        self.metrics |= {
            "num_images": {"target": len(rows), "evaluation": len(self.evaluation or ())},
            "settings": public_settings(settings),
            "versions": package_versions(),
        }
        if self.run.is_main:
            write_json(folder / "metrics.json", self.metrics)
            write_table(folder / "table.md", self.metrics)
            shown = rows if self.truth is None else self.truth
            write_panel(folder / "panel.png", shown, folder, settings.run.num_stages)
            print((folder / "table.md").read_text(encoding="utf-8"))
            print(f"Written: {folder / 'metrics.json'}, table.md and panel.png beside it.")
        return self.metrics

    def _label_maps(self, path: Path, labels: Labels) -> dict | None:
        run, truth, num_labels = self.run, self.truth, len(self.metrics["classes"]) + 1
        if truth is None:
            return None
        return run.once(path, lambda: measure_label_maps(run, truth, num_labels, labels))

    def _add(self, score: str, kind: str, stage: Stage, measured: dict) -> None:
        self.metrics[score][str(stage.number)] = measured["mean_iou"]
        name = f"{stage.dataset}/{score}"
        self.run.track({name: measured["mean_iou"]})
        if "crf" in measured:
            self.run.track({f"{name}_crf": measured["crf"]["mean_iou"]})
        self.metrics["details"][kind][str(stage.number)] = measured


def write_table(path: Path, metrics: dict) -> None:
    """The stage table of the paper (Tables II to V) from `metrics.json`, in Markdown."""
    stages = [str(stage) for stage in range(metrics["settings"]["run"]["num_stages"] + 1)]
    with_crf = any("crf" in m for m in metrics["details"]["segmenter"].values())
    num_images = metrics["num_images"]
    on = f"measured on {num_images['evaluation']} images" if num_images["evaluation"] else "not measured"
    lines = [
        f"Target set: {num_images['target']} images, {len(metrics['classes'])} classes; segmenter {on}. mIoU in "
        f"percent, background included; mode {metrics['mode']}.",
        "",
        "| | " + " | ".join(f"stage {s}" for s in stages) + " |",
        "| --- |" + " --- |" * len(stages),
    ]
    rows = {}
    if metrics["box_fill_miou"] is not None:
        rows["box fill"] = {"0": metrics["box_fill_miou"]}
    if metrics["pseudo_mask_miou"]:
        rows["pseudo masks"] = metrics["pseudo_mask_miou"]
    if metrics["segmenter_miou"]:
        rows["segmenter"] = metrics["segmenter_miou"]
    if with_crf:
        rows["segmenter + CRF"] = {s: m["crf"]["mean_iou"] for s, m in metrics["details"]["segmenter"].items()}
    for name, values in rows.items():
        cells = [f"{100 * values[s]:.1f}" if s in values else "" for s in stages]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_panel(path: Path, rows: Dataset, target: Path, num_stages: int) -> None:
    """Image, boxes, pseudo masks of each stage and ground truth of a few images (Fig. 3 and 5), evenly chosen."""
    names = class_names(rows)
    stages = [s for s in range(num_stages + 1) if (target / f"stage{s}" / "pseudo_masks").is_dir()]
    has_truth = "mask" in rows.column_names or "segmentation" in rows.features["objects"]
    columns = ["image", "boxes", *(f"stage {s}" for s in stages), *(["ground truth"] if has_truth else [])]
    cells = []
    for index in np.unique(np.linspace(0, len(rows) - 1, _PANEL_ROWS).round().astype(int)):
        row = rows[int(index)]
        image = decode_image(row)
        boxes, labels = row_boxes(row)
        line = [image, draw_boxes(image, boxes, labels.tolist(), names)]
        for stage in stages:
            mask = read_label_map(target / f"stage{stage}" / "pseudo_masks" / mask_name(row["file_name"]))
            line.append(overlay(image, mask))
        if has_truth:
            line.append(overlay(image, label_map(row)))
        cells.append(line)
    panel(columns, cells).save(path)
