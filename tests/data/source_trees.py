"""Small copies of the folder trees of data sets, made by code.

`read_layout` opens no image, so most files hold one byte. `make_image` and `make_mask` write files that ingestion can
read.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)


def touch(root, *names):
    """Write files of one byte below a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def make_image(path, number, size=SIZE):
    """Write an image that differs by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_mask(path, *rows_and_values, size=SIZE):
    """Write a mask with one row of pixels per (row, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    for row, value in rows_and_values:
        mask[row, 4:9] = value
    Image.fromarray(mask).save(path)


def mvtec(root):
    touch(root, *(f"train/good/{i:03}.png" for i in range(3)), "test/good/000.png", "license.txt")
    touch(root, *(f"test/cut/{i:03}.png" for i in range(3)), *(f"ground_truth/cut/{i:03}_mask.png" for i in range(3)))


def mpdd(root):
    touch(root, *(f"train/good/{i:03}.png" for i in range(3)), *(f"test/hole/{i:03}.png" for i in range(3)))
    touch(root, "test/good/000.png", *(f"ground_truth/hole/{i:03}_mask.png" for i in range(3)))


def btad(root):
    touch(root, *(f"train/ok/{i:04}.bmp" for i in range(3)), *(f"test/ok/{i:04}.bmp" for i in range(2)))
    touch(root, *(f"test/ko/{i:04}.bmp" for i in range(3)), *(f"ground_truth/ko/{i:04}.png" for i in range(3)))


def mvtec_ad_2(root):
    touch(root, "train/good/000_regular.png", "validation/good/000_regular.png", "test_public/good/000_regular.png")
    touch(root, *(f"test_public/bad/{i:03}_overexposed.png" for i in range(3)))
    touch(root, *(f"test_public/ground_truth/bad/{i:03}_overexposed_mask.png" for i in range(3)))
    touch(root, "test_private/000_regular.png", "test_private_mixed/000_mixed.png")


def loco(root):
    touch(root, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        touch(root, *(f"test/{kind}/{i:03}.png" for i in range(2)))
        touch(root, f"ground_truth/{kind}/000/000.png", f"ground_truth/{kind}/001/000.png")
        touch(root, f"ground_truth/{kind}/001/001.png")


def mvtec3d(root):
    touch(root, "train/good/rgb/000.png", "train/good/xyz/000.tiff", "test/good/rgb/000.png", "test/good/gt/000.png")
    touch(root, "test/hole/rgb/000.png", "test/hole/gt/000.png", "test/hole/xyz/000.tiff")


def visa(root):
    touch(root, "Data/Images/Normal/0000.JPG", "Data/Images/Normal/0001.JPG", "image_anno.csv")
    touch(root, "Data/Images/Anomaly/000.JPG", "Data/Masks/Anomaly/000.png")


def kolektor(root):
    for item in range(3):
        for part in range(2):
            touch(root, f"kos{item:02}/Part{part}.jpg", f"kos{item:02}/Part{part}_label.bmp")


def kolektor2(root):
    for split in ("train", "test"):
        for number in range(3):
            touch(root, f"{split}/{number + 10000}.png", f"{split}/{number + 10000}_GT.png")


def dagm(root):
    for split, first in (("Train", 576), ("Test", 1)):
        touch(root, *(f"{split}/{first + i:04}.PNG" for i in range(4)), f"{split}/Label/{first:04}_label.PNG")
        rows = [f"{first + i}\t{int(i == 0)}\t{first + i:04}.PNG\t0\t{'x' if i == 0 else 0}" for i in range(4)]
        (root / split / "Label/Labels.txt").write_text("1\n" + "\n".join(rows) + "\n")


def real_iad(root):
    rows = {"train": [], "test": []}
    for split, label, sample in (("train", "OK", 1), ("train", "OK", 2), ("test", "OK", 3), ("test", "AK", 4)):
        for view in range(1, 3):
            folder = f"{'OK' if label == 'OK' else f'NG/{label}'}/S{sample:04}"
            name = f"{folder}/plug_{sample:04}_{label}_C{view}.jpg"
            mask = None if label == "OK" else name.replace(".jpg", ".png")
            touch(root, name, *([mask] if mask else []))
            rows[split].append({"category": "plug", "anomaly_class": label, "image_path": name, "mask_path": mask})
    content = {"meta": {"normal_class": "OK", "prefix": f"{root.name}/"}, **rows}
    (root / "plug.json").write_text(json.dumps(content))


def severstal(root):
    touch(root, *(f"train_images/{name}.jpg" for name in ("a", "b", "c")), "test_images/d.jpg")
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,3,1 2 25 1\na.jpg,1,30 1\nb.jpg,1,\n")


def folder(root):
    touch(root, *(f"good/{i}.png" for i in range(3)), *(f"cut/{i}.png" for i in range(3)))
    touch(root, *(f"cut/{i}_mask.png" for i in range(3)))


def normal_abnormal_mask(root):
    touch(root, *(f"normal/n{i}.jpg" for i in range(3)), *(f"abnormal/a{i}.jpg" for i in range(3)))
    touch(root, *(f"mask/a{i}.png" for i in range(3)))


def ng_types(root):
    touch(root, "OK/1.jpg", "OK/2.jpg", "NG/scratch/1.jpg", "NG/scratch/1.png", "NG/dent/2.jpg", "NG/dent/2.png")


def pairs(root):
    touch(root, *(f"day1/{i}.png" for i in range(3)), *(f"day1/{i}_label.png" for i in range(3)))
    touch(root, "day2/7.png", "day2/7_label.png")


def _polygon(label, name):
    points = [[4, 4], [9, 4], [9, 9], [4, 9]]
    shape = {"label": label, "points": points, "shape_type": "polygon"}
    return {"version": "5", "shapes": [shape], "imagePath": name, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}


def labelme(root):
    touch(root, "good/1.png", "scratch/2.png", "scratch/3.png")
    for number in (2, 3):
        (root / f"scratch/{number}.json").write_text(json.dumps(_polygon("scratch", f"{number}.png")))


def coco(root):
    touch(root, "images/1.png", "images/2.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE[1], "height": SIZE[0]} for i in (1, 2)]
    shape = {"id": 1, "image_id": 2, "category_id": 1, "segmentation": [[4, 4, 9, 4, 9, 9]], "bbox": [4, 4, 5, 5]}
    content = {"images": images, "categories": [{"id": 1, "name": "scratch"}], "annotations": [shape]}
    (root / "annotations.json").write_text(json.dumps(content))


def yolo(root):
    touch(root, "images/1.png", "images/2.png")
    (root / "labels").mkdir()
    (root / "labels/1.txt").write_text("")
    (root / "labels/2.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames:\n  0: scratch\n")


def segmentation_masks(root):
    for number in range(3):
        make_image(root / f"JPEGImages/{number}.png", number)
        path = root / f"SegmentationClass/{number}.png"
        path.parent.mkdir(exist_ok=True)
        mask = np.zeros((*SIZE, 3), np.uint8)
        mask[4:9, 4:9, 0] = 128 if number else 0
        Image.fromarray(mask).save(path)
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:128,0,0::\n")


def own_export(root, layout="mvtec"):
    real = "train/good/good-1.png" if layout == "mvtec" else "images/good-1.png"
    synthetic = "test/cut/crop-paste-0.png" if layout == "mvtec" else "images/crop-paste-0.png"
    others = {
        "mvtec": ["ground_truth/cut/crop-paste-0_mask.png"],
        "coco": ["annotations.json"],
        "yolo": ["labels/crop-paste-0.txt", "labels/good-1.txt", "data.yaml"],
    }
    touch(root, real, synthetic, *others[layout])
    content = {"format": layout, "product": "plug", "real": [real], "synthetic": [synthetic]}
    (root / "defectory-export.json").write_text(json.dumps(content))


TREES = {
    "mvtec": (mvtec, "mvtec"),
    "mpdd": (mpdd, "mvtec"),
    "btad": (btad, "btad"),
    "mvtec ad 2": (mvtec_ad_2, "mvtec_ad_2"),
    "loco": (loco, "loco"),
    "mvtec 3d": (mvtec3d, "mvtec3d"),
    "visa": (visa, "visa"),
    "kolektor": (kolektor, "kolektor"),
    "kolektor 2": (kolektor2, "kolektor2"),
    "dagm": (dagm, "dagm"),
    "real iad": (real_iad, "real_iad"),
    "severstal": (severstal, "severstal"),
    "folder": (folder, "folder"),
    "normal abnormal mask": (normal_abnormal_mask, "folder"),
    "ng types": (ng_types, "folder"),
    "pairs": (pairs, "pairs"),
    "labelme": (labelme, "annotations (labelme)"),
    "coco": (coco, "annotations (coco)"),
    "yolo": (yolo, "annotations (yolo)"),
    "segmentation masks": (segmentation_masks, "annotations (segmentation_masks)"),
    "own export": (own_export, "own_export"),
}
"""A function that makes the tree, and the layout that `auto` finds, by name."""


def make_tree(name, root):
    """Make one of `TREES` and return its folder."""
    root.mkdir(parents=True)
    TREES[name][0](root)
    return root


def names_below(root):
    """Return every file below a folder relative to it: regular files, links, pipes."""
    return sorted(
        str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_symlink() or not path.is_dir()
    )
