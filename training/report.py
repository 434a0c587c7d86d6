"""What a deployment leaves for a reader: the stage table and the image panel."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from lpg_hf.data.examples import decode_image, label_map, row_boxes
from lpg_hf.data.load import class_names
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.visualize import draw_boxes, overlay, panel


PANEL_ROWS = 6


def write_table(path: Path, metrics: dict) -> None:
    """The stage table of the paper (Tables II to V) from `metrics.json`, in Markdown."""
    stages = [str(stage) for stage in range(metrics["settings"]["num_stages"] + 1)]
    with_crf = any("crf" in m for m in metrics["details"]["segmenter"].values())
    num_images = metrics["num_images"]
    on = f"measured on {num_images['evaluation']} images" if num_images["evaluation"] else "not measured"
    lines = [
        f"Target set: {num_images['target']} images, {len(metrics['classes'])} classes; segmenter {on}. mIoU in percent, "
        f"background included; mode {metrics['mode']}.",
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
    stages = [s for s in range(1, num_stages + 1) if (target / f"stage{s}" / "pseudo_masks").is_dir()]
    has_truth = "mask" in rows.column_names or "segmentation" in rows.features["objects"]
    columns = ["image", "boxes", *(f"stage {s}" for s in stages), *(["ground truth"] if has_truth else [])]
    cells = []
    for index in np.unique(np.linspace(0, len(rows) - 1, PANEL_ROWS).round().astype(int)):
        row = rows[int(index)]
        image = decode_image(row)
        boxes, labels = row_boxes(row)
        line = [image, draw_boxes(image, boxes, labels, names)]
        for stage in stages:
            mask = read_label_map(target / f"stage{stage}" / "pseudo_masks" / mask_name(row["file_name"]))
            line.append(overlay(image, mask))
        if has_truth:
            line.append(overlay(image, label_map(row)))
        cells.append(line)
    panel(columns, cells).save(path)
