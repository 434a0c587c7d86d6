"""Small exports in the layouts of labelling tools: each holds a.png (60 x 40) with the box BOX of the class red."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from trees import HEIGHT, WIDTH, make_image


BOX = (10.0, 8.0, 30.0, 24.0)
OTHER = (40.0, 20.0, 52.0, 34.0)
CORNERS = [[10, 8], [30, 8], [30, 24], [10, 24]]


def write(root: Path, name: str, content: object) -> Path:
    """A text or json file; ".png" and ".jpg": the image of `make_image`."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".png", ".jpg")):
        make_image().save(path)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return path


def labelme_json(name: str = "a.png", shapes: list[dict] | None = None) -> dict:
    box = {"label": "red", "points": CORNERS[::2], "group_id": None, "shape_type": "rectangle", "flags": {}}
    shapes = [box] if shapes is None else [{**box, **shape} for shape in shapes]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **size}


def labelme(root: Path) -> None:
    write(root, "a.png", None)
    write(root, "a.json", labelme_json())


def x_anylabeling(root: Path) -> None:
    """Rectangles of four points, further keys, json in a folder of its own beside the images'."""
    shape = {"points": CORNERS, "score": None, "difficult": False, "attributes": {}, "kie_linking": []}
    write(root, "images/a.png", None)
    write(root, "labels/a.json", {**labelme_json("..\\images\\a.png", [shape]), "version": "2.4.4"})


def cvat_xml(*objects: str, name: str = "a.png", labels: str = "red") -> str:
    listed = "".join(f"<label><name>{label}</name><color>#ff0000</color></label>" for label in labels.split())
    box = '<box label="red" source="manual" occluded="0" xtl="10.00" ytl="8.00" xbr="30.00" ybr="24.00"></box>'
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>1</id>'
        f'<labels>{listed}</labels></task></meta><image id="0" name="{name}" width="60" height="40">'
        f"{''.join(objects) or box}</image></annotations>"
    )


def cvat_images(root: Path) -> None:
    write(root, "images/a.png", None)
    write(root, "annotations.xml", cvat_xml())


_REGION_IDS = count()


def region(kind: str = "rectangle", **value) -> dict:
    """A region of Label Studio, in percent."""
    base = {"x": 100 * 10 / 60, "y": 20.0, "width": 100 * 20 / 60, "height": 40.0, "rotation": 0}
    value = {**(base if kind == "rectangle" else {}), f"{kind}labels": ["red"], **value}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    key = f"r{next(_REGION_IDS)}"
    return {**size, "value": value, "id": key, "from_name": "label", "to_name": "image", "type": f"{kind}labels"}


def ocr_region(kind: str = "rectangle", labels: tuple[str, ...] = ("red",), **value) -> list[dict]:
    """A region of Label Studio's template for OCR: one result a control, of one id, each with the geometry."""
    base = region(kind, **value)
    shape = {key: item for key, item in base["value"].items() if not key.endswith("labels")}
    return [
        {**base, "value": shape, "from_name": "bbox", "type": kind},
        {**base, "value": {**shape, "labels": list(labels)}, "from_name": "label", "type": "labels"},
        {**base, "value": {**shape, "text": ["hello"]}, "from_name": "transcription", "type": "textarea"},
    ]


def label_studio_task(*regions: dict, image: str = "/data/upload/1/0a1b2c3d-a.png", **task) -> dict:
    results = [{"id": 1, "was_cancelled": False, "result": list(regions or [region()])}]
    return {"id": 1, "annotations": results, "data": {"image": image}, "predictions": [], **task}


def label_studio(root: Path) -> None:
    write(root, "images/a.png", None)
    write(root, "project.json", [label_studio_task()])


def label_studio_local(root: Path) -> None:
    write(root, "set/a.png", None)
    write(root, "project.json", [label_studio_task(image="/data/local-files/?d=set/a.png")])


def label_studio_min(root: Path) -> None:
    row = {**region()["value"], "original_width": WIDTH, "original_height": HEIGHT}
    write(root, "images/a.png", None)
    write(root, "project.json", [{"image": "/data/upload/1/0a1b2c3d-a.png", "id": 1, "label": [row], "annotator": 1}])


def createml_json(*annotations: dict, name: str = "a.png") -> list[dict]:
    box = {"label": "red", "coordinates": {"x": 20, "y": 16, "width": 20, "height": 16}}
    return [{"image": name, "annotations": list(annotations or [box])}]


def createml(root: Path) -> None:
    """Roboflow's: one file a split, beside its images."""
    for split in ("train", "valid"):
        write(root, f"{split}/{split}.png", None)
        write(root, f"{split}/_annotations.createml.json", createml_json(name=f"{split}.png"))


def bdd_label(**changes) -> dict:
    return {"id": "0", "category": "red", "box2d": {"x1": 10, "y1": 8, "x2": 29, "y2": 23}, **changes}


def bdd100k(root: Path) -> None:
    frames = [{"name": "a.jpg", "timestamp": 1000, "labels": [bdd_label()]}, {"name": "b.jpg", "labels": None}]
    write(root, "images/100k/train/a.jpg", None)
    write(root, "images/100k/train/b.jpg", None)
    write(root, "labels/det_20/det_train.json", frames)


def bdd100k_per_image(root: Path) -> None:
    """As of 2018: boxes of drawn corners, not of pixels."""
    drawn = bdd_label(box2d={"x1": 10.0, "y1": 8.0, "x2": 30.0, "y2": 24.0})
    write(root, "images/100k/train/a.jpg", None)
    write(root, "labels/100k/train/a.json", {"name": "a", "frames": [{"timestamp": 1, "objects": [drawn]}]})


def scalabel(root: Path) -> None:
    categories = [{"name": "colours", "subcategories": [{"name": "red"}, {"name": "blue"}]}]
    config = {"imageSize": {"height": HEIGHT, "width": WIDTH}, "categories": categories}
    write(root, "images/a.png", None)
    write(root, "labels.json", {"frames": [{"name": "a.png", "labels": [bdd_label()]}], "config": config})


KITTI_LINE = "red 0.00 0 -1.57 10.00 8.00 30.00 24.00 1.5 1.6 3.9 0.0 1.5 20.0 -1.5"


def kitti(root: Path) -> None:
    write(root, "training/image_2/000000.png", None)
    write(root, "training/label_2/000000.txt", f"{KITTI_LINE}\n")


def fiftyone_kitti(root: Path) -> None:
    write(root, "data/000000.png", None)
    write(root, "labels/000000.txt", f"{KITTI_LINE}\n")


def mot(root: Path) -> None:
    info = "[Sequence]\nname=S\nimDir=img1\nframeRate=30\nseqLength=1\nimWidth=60\nimHeight=40\nimExt=.jpg\n"
    write(root, "img1/000001.jpg", None)
    write(root, "gt/gt.txt", "1,1,11,9,20,16,1,1,1\n")
    write(root, "seqinfo.ini", info)


def cvat_mot(root: Path) -> None:
    """Of a video; without seqinfo.ini, numbers of pixels from 0."""
    write(root, "img1/frame_000000.png", None)
    write(root, "img1/frame_000001.png", None)
    write(root, "gt/gt.txt", "1,1,10.0,8.0,20.0,16.0,1,1,1.0\r\n2,1,40.0,20.0,12.0,14.0,1,2,1.0\r\n")
    write(root, "gt/labels.txt", "red\ndog")


def dota(root: Path) -> None:
    text = "imagesource:GoogleEarth\ngsd:0.14\n10.0 8.0 30.0 8.0 30.0 24.0 10.0 24.0 red 0\n"
    write(root, "train/images/a.png", None)
    write(root, "train/labelTxt/a.txt", text)


def open_images(root: Path) -> None:
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    write(root, "images/a.jpg", None)
    write(root, "train-annotations-bbox.csv", f"{head}\na,xclick,/m/01,1,0.166667,0.5,0.2,0.6,0,0,0,0,0\n")
    write(root, "class-descriptions-boxable.csv", "/m/01,red\n/m/02,blue\n")


def fiftyone_open_images(root: Path) -> None:
    open_images(root)
    for old, new in (("images", "data"), ("train-annotations-bbox.csv", "labels/detections.csv")):
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    (root / "metadata").mkdir()
    (root / "class-descriptions-boxable.csv").rename(root / "metadata" / "classes.csv")
    write(root, "metadata/image_ids.csv", "ImageID,Subset,OriginalURL\na,train,\n")


def tensorflow_csv(root: Path) -> None:
    write(root, "train/a.png", None)
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    write(root, "train/_annotations.csv", f"{head}\na.png,60,40,red,10,8,30,24\n")


def deepforest(root: Path) -> None:
    write(root, "a.png", None)
    write(root, "boxes.csv", "image_path,xmin,ymin,xmax,ymax,label\na.png,10,8,30,24,red\n")


def retinanet(root: Path) -> None:
    write(root, "a.png", None)
    write(root, "b.png", None)
    write(root, "annotations.csv", "a.png,10,8,30,24,red\nb.png,,,,,\n")


def makesense(root: Path) -> None:
    head = "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height"
    write(root, "a.png", None)
    write(root, "labels.csv", f"{head}\nred,10,8,20,16,a.png,60,40\n")


def gtsrb(root: Path) -> None:
    write(root, "Train/14/a.png", None)
    head = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"
    write(root, "Train.csv", f"{head}\n60,40,10,8,30,24,14,Train/14/a.png\n")


def sku110k(root: Path) -> None:
    write(root, "images/a.png", None)
    write(root, "annotations/annotations_train.csv", "a.png,10,8,30,24,object,60,40\n")


# Name of the layout -> (format, what makes it, classes).
TOOL_TREES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "LabelMe": ("labelme", labelme, ["red"]),
    "X-AnyLabeling": ("labelme", x_anylabeling, ["red"]),
    "CVAT for images 1.1": ("cvat", cvat_images, ["red"]),
    "Label Studio JSON": ("label-studio", label_studio, ["red"]),
    "Label Studio JSON, local files": ("label-studio", label_studio_local, ["red"]),
    "Label Studio JSON-MIN": ("label-studio", label_studio_min, ["red"]),
    "CreateML": ("createml", createml, ["red"]),
    "BDD100K": ("bdd100k", bdd100k, ["red"]),
    "BDD100K, one json per image": ("bdd100k", bdd100k_per_image, ["red"]),
    "Scalabel": ("bdd100k", scalabel, ["red", "blue"]),
    "KITTI": ("kitti", kitti, ["red"]),
    "FiftyOne KITTI": ("kitti", fiftyone_kitti, ["red"]),
    "MOT Challenge": ("mot", mot, ["pedestrian"]),
    "CVAT MOT 1.1": ("mot", cvat_mot, ["red", "dog"]),
    "DOTA": ("dota", dota, ["red"]),
    "Open Images": ("csv", open_images, ["red"]),
    "FiftyOne Open Images": ("csv", fiftyone_open_images, ["red"]),
    "TensorFlow csv": ("csv", tensorflow_csv, ["red"]),
    "DeepForest": ("csv", deepforest, ["red"]),
    "RetinaNet csv": ("csv", retinanet, ["red"]),
    "makesense.ai csv": ("csv", makesense, ["red"]),
    "GTSRB": ("csv", gtsrb, ["14"]),
    "SKU-110K": ("csv", sku110k, ["object"]),
}


# COCO, VOC and YOLO as tools write them.


def coco_json(name: str = "a.png", **changes) -> dict:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 20, 16], "area": 320, "iscrowd": 0}
    content = {
        "info": {},
        "licenses": [],
        "images": [{"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": name}],
        "annotations": [{**annotation, "segmentation": []}],
        "categories": [{"id": 1, "name": "red", "supercategory": ""}],
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not ...}


def coco_official(root: Path) -> None:
    write(root, "train2017/a.jpg", None)
    write(root, "annotations/instances_train2017.json", coco_json("a.jpg"))
    write(
        root, "annotations/captions_train2017.json", {"images": [], "annotations": [{"caption": "a", "image_id": 1}]}
    )


def cvat_coco(root: Path) -> None:
    write(root, "images/default/a.png", None)
    write(root, "annotations/instances_default.json", coco_json("a.png"))


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write(root, f"{split}/{split}.jpg", None)
        write(root, f"{split}/_annotations.coco.json", coco_json(f"{split}.jpg"))


def label_studio_coco(root: Path) -> None:
    write(root, "images/0a1b2c3d-a.png", None)
    write(root, "result.json", coco_json("images\\0a1b2c3d-a.png"))


def lvis(root: Path) -> None:
    image = {
        "id": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "coco_url": "http://images.cocodataset.org/train2017/000000000001.jpg",
    }
    write(root, "train2017/000000000001.jpg", None)
    write(root, "lvis_v1_train.json", coco_json(images=[image]))


def via_coco(root: Path) -> None:
    annotation = {"id": 0, "image_id": "1", "segmentation": [10, 8, 30, 8, 30, 24, 10, 24], "bbox": [10, 8, 20, 16]}
    write(root, "images/a.png", None)
    write(root, "via_export_coco.json", coco_json(annotations=[annotation], categories=[]))


def coco_per_image(root: Path) -> None:
    for name in "ab":
        write(root, f"images/{name}.png", None)
        write(root, f"annotations/{name}.json", coco_json(f"{name}.png"))


def voc_text(
    name: str, box: tuple = BOX, source: str = "", size: str = "<depth>3</depth>", flags: str = "", path: str = ""
) -> str:
    """The xml file of a tool, 0-based and end exclusive as both below write it."""
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height>{size}</size><segmented>0</segmented>"
    thing = f"<object><name>red</name>{flags}<difficult>0</difficult><bndbox>{corners}</bndbox></object>"
    source = f"<source><database>Unknown</database>{source}</source>"
    return f"<annotation><folder>f</folder><filename>{name}</filename>{path}{source}{size}{thing}</annotation>"


def labelimg_voc(root: Path) -> None:
    """The xml files beside the images; corners are cut to whole numbers, of 0 to 1."""
    flags = "<pose>Unspecified</pose><truncated>0</truncated>"
    box = tuple(int(value) for value in BOX)
    write(root, "a.png", None)
    write(root, "a.xml", voc_text("a.png", box, flags=flags, path="<path>/home/me/f/a.png</path>"))


def cvat_voc(root: Path) -> None:
    """By Datumaro: corners as CVAT has them, with fractions."""
    source = "<annotation>Unknown</annotation><image>Unknown</image>"
    flags = "<truncated>0</truncated><occluded>0</occluded>"
    write(root, "JPEGImages/a.png", None)
    write(root, "Annotations/a.xml", voc_text("a.png", BOX, source, "<depth></depth>", flags))
    write(root, "ImageSets/Main/default.txt", "a\n")
    write(root, "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred:255,0,0::\n")


def label_studio_voc(root: Path) -> None:
    """By its converter: corners are cut to whole numbers, of 0 to 1; the source is stated as if it was VOC's."""
    text = voc_text("0a1b2c3d-a.png", tuple(int(value) for value in BOX), "<annotation>COCO2017</annotation>")
    owner = "<owner><flickrid>NULL</flickrid><name>Label Studio</name></owner>"
    write(root, "images/0a1b2c3d-a.png", None)
    write(
        root, "Annotations/0a1b2c3d-a.xml", text.replace("Unknown", "MyDatabase").replace("<size>", f"{owner}<size>")
    )


def roboflow_voc(root: Path) -> None:
    """The xml files beside the images, in a folder for each split."""
    for split in ("train", "valid"):
        text = voc_text(f"{split}.jpg", (11, 9, 30, 24), path=f"<path>{split}.jpg</path>")
        write(root, f"{split}/{split}.jpg", None)
        write(root, f"{split}/{split}.xml", text.replace("Unknown", "roboflow.com"))


def fiftyone_voc(root: Path) -> None:
    """Corners are rounded, of 0 to 1; elements without a value are empty."""
    box = tuple(int(value) for value in BOX)
    write(root, "data/a.png", None)
    text = voc_text("a.png", box, flags="<pose></pose>", path="<path>/home/me/f/a.png</path>")
    write(root, "labels/a.xml", text.replace("<database>Unknown", "<database>"))


YOLO_LINE = "0 0.333333 0.4 0.333333 0.4\n"


def roboflow_yolo(root: Path) -> None:
    for split in ("train", "valid"):
        write(root, f"{split}/images/{split}.jpg", None)
        write(root, f"{split}/labels/{split}.txt", YOLO_LINE)
    write(root, "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 1\nnames: ['red']\n")


def roboflow_darknet(root: Path) -> None:
    for split in ("train", "valid"):
        write(root, f"{split}/{split}.jpg", None)
        write(root, f"{split}/{split}.txt", YOLO_LINE)
        write(root, f"{split}/_darknet.labels", "red\nblue\n")


def label_studio_yolo(root: Path) -> None:
    write(root, "images/0a1b2c3d-a.png", None)
    write(root, "labels/0a1b2c3d-a.txt", YOLO_LINE)
    write(root, "classes.txt", "red\n")
    write(root, "notes.json", {"categories": [{"id": 0, "name": "red"}], "info": {"year": 2024}})


def cvat_yolo(root: Path) -> None:
    """CVAT's YOLO 1.1: the paths in the list begin with a folder "data" that is not there."""
    write(root, "obj_train_data/a.png", None)
    write(root, "obj_train_data/a.txt", YOLO_LINE)
    write(root, "obj.names", "red\n")
    write(root, "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root, "train.txt", "data/obj_train_data/a.png\n")


def cvat_ultralytics(root: Path) -> None:
    write(root, "images/train/a.png", None)
    write(root, "labels/train/a.txt", YOLO_LINE)
    write(root, "train.txt", "images/train/a.png\n")
    write(root, "data.yaml", "names:\n  0: red\npath: ./\ntrain: train.txt\n")


def yolo_obb(root: Path) -> None:
    write(root, "images/train/a.png", None)
    write(root, "labels/train/a.txt", "0 0.435727 0.6 0.5 0.433013 0.23094 0.2 0.166667 0.366987\n")
    write(root, "data.yaml", "train: images/train\nval: images/train\nnames: [red]\n")


def hub_detection(root: Path) -> None:
    """A dict of lists in Parquet, as the cppe-5 dataset has it."""
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["red"]))}
    path = write(root, "data/a.png", None)
    row = {"image": {"bytes": path.read_bytes()}, "objects": {"bbox": [[10, 8, 20, 16]], "category": [0]}}
    path.unlink()
    rows = Dataset.from_list([row], features=Features({"image": Image(), "objects": objects}))
    rows.to_parquet(root / "data" / "train-00000-of-00001.parquet")


def imagefolder(root: Path) -> None:
    write(root, "train/a.png", None)
    row = {"file_name": "a.png", "objects": {"bbox": [[10, 8, 20, 16]], "category": ["red"]}}
    write(root, "train/metadata.jsonl", json.dumps(row) + "\n")


OTHER_TREES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "COCO": ("coco", coco_official, ["red"]),
    "CVAT COCO 1.0": ("coco", cvat_coco, ["red"]),
    "Roboflow COCO": ("coco", roboflow_coco, ["red"]),
    "Label Studio COCO": ("coco", label_studio_coco, ["red"]),
    "LVIS v1": ("coco", lvis, ["red"]),
    "VIA COCO": ("coco", via_coco, ["object"]),
    "COCO, one json per image": ("coco", coco_per_image, ["red"]),
    "LabelImg VOC": ("voc", labelimg_voc, ["red"]),
    "CVAT VOC 1.1": ("voc", cvat_voc, ["red"]),
    "Label Studio VOC": ("voc", label_studio_voc, ["red"]),
    "Roboflow VOC": ("voc", roboflow_voc, ["red"]),
    "FiftyOne VOC": ("voc", fiftyone_voc, ["red"]),
    "Roboflow YOLO": ("yolo", roboflow_yolo, ["red"]),
    "Roboflow YOLO Darknet": ("yolo", roboflow_darknet, ["red"]),
    "Label Studio YOLO": ("yolo", label_studio_yolo, ["red"]),
    "CVAT YOLO 1.1": ("yolo", cvat_yolo, ["red"]),
    "CVAT Ultralytics YOLO": ("yolo", cvat_ultralytics, ["red"]),
    "YOLO-OBB": ("yolo", yolo_obb, ["red"]),
    "Hub detection dataset": ("dataset", hub_detection, ["red"]),
    "imagefolder": ("dataset", imagefolder, ["red"]),
}
