"""`benchmarks/thin_things.py` and `benchmarks/segmentations.py`."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.segmentations import segmentations
from benchmarks.thin_things import thin_things
from lpg_hf.label_maps import write_label_map


CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3, 4)],
    "annotations": [{"id": i, "image_id": i, "category_id": 1 + (i == 2), "bbox": [0, 0, 2, 2]} for i in (1, 2, 3, 4)],
    "categories": [{"id": 1, "name": "fork"}, {"id": 2, "name": "cow"}],
}


def test_thin_things_are_the_first_unseen_images_of_the_classes():
    content = thin_things(CONTENT, ["fork"], 2, {"1.jpg"})
    assert [image["id"] for image in content["images"]] == [3, 4]
    assert [item["id"] for item in content["annotations"]] == [3, 4]
    assert content["categories"] == CONTENT["categories"][:1]
    with pytest.raises(ValueError, match="only 3 images"):
        thin_things(CONTENT, ["fork"], 4, set())
    with pytest.raises(ValueError, match="no class 'ski'"):
        thin_things(CONTENT, ["ski"], 1, set())


def test_a_row_for_each_image_that_every_folder_has(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"{name}.png")
    folders = {"weak": tmp_path / "weak", "ground truth": tmp_path / "truth"}
    for folder in folders.values():
        for name in ("a", "b"):
            write_label_map(folder / f"{name}.png", np.ones((30, 40), dtype=np.uint8))
    two, one = (segmentations(tmp_path / "images", folders, number) for number in (6, 1))
    assert two.height - one.height > 100 and two.width > 3 * 200  # image, weak, truth
    with pytest.raises(ValueError, match="no image of"):
        segmentations(tmp_path / "images", {"full": tmp_path / "full"}, 6)
