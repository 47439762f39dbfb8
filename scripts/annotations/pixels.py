"""Formats with a value or a colour for each pixel: Pascal VOC, nnU-Net, tables."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import cv2
import datasets
import datumaro
import imgviz
import numpy as np
import pandas as pd
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image

from annotations.drawings import CLASSES, TRAIN, VOID, Work, png
from annotations.tool_datasets import as_mask, datumaro_dataset, drawn


def check_voc(work: Work) -> None:
    """Read a folder with datumaro."""
    dataset = datumaro.Dataset.import_from(str(work.out), "voc_segmentation")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    seen = set()
    for item in dataset:
        seen.add(item.id)
        work.same(item.id, drawn(item.annotations, work.drawings[item.id].size, labels))
    if seen != set(work.drawings):
        raise ValueError(f"{work.out.name}: only {seen} came back")


def write_voc_datumaro(work: Work) -> None:
    """Write masks in colours with a labelmap.txt; an empty image has no mask file."""
    dataset = datumaro_dataset(work, as_mask)
    dataset.export(str(work.out), "voc_segmentation", save_media=True)
    check_voc(work)


def write_voc_lists(work: Work) -> None:
    """Write ImageSets/Segmentation as in the original."""
    lists = work.split() | {"trainval": list(work.drawings)}
    for subset, names in lists.items():
        work.write(f"ImageSets/Segmentation/{subset}.txt", "".join(f"{each}\n" for each in names))


def write_voc(work: Work) -> None:
    """Write palette PNG as labelme2voc.py writes them (imgviz), and its list of names."""
    work.copy("JPEGImages")
    (work.out / "SegmentationClass").mkdir()
    for name, drawing in work.drawings.items():
        path = work.out / "SegmentationClass" / f"{name}.png"
        imgviz.io.lblsave(str(path), drawing.truth())
        with Image.open(path) as mask:
            work.same(name, np.array(mask))
    write_voc_lists(work)
    work.write("class_names.txt", "".join(f"{each}\n" for each in ("_background_", *CLASSES)))


def write_voc_void(work: Work) -> None:
    """Write as the original (by the schema): JPEG, palette PNG, void 255 round each object."""
    write_voc_lists(work)
    (work.out / "JPEGImages").mkdir()
    palette = imgviz.label_colormap()
    for name, drawing in work.drawings.items():
        Image.fromarray(drawing.image()).save(work.out / f"JPEGImages/{name}.jpg", quality=90)
        truth = drawing.truth()
        grown = cv2.dilate((truth > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        values = np.where(grown & (truth == 0), VOID, truth).astype(np.uint8)
        mask = Image.fromarray(values)
        mask.putpalette(palette.astype(np.uint8).tobytes())
        stream = io.BytesIO()
        mask.save(stream, "png")
        work.write(f"SegmentationClass/{name}.png", stream.getvalue())
        work.write(f"../truth-void/{name}.png", png(values))
        with Image.open(work.out / f"SegmentationClass/{name}.png") as found:
            work.same(name, np.array(found), wanted=values)


# nnU-Net


def write_nnunet_json(work: Work, channels: dict[int, str]) -> None:
    """Write dataset.json with nnU-Net's own function."""
    generate_dataset_json(
        str(work.out),
        channels,
        {"background": 0} | {label: value for value, label in enumerate(CLASSES, start=1)},
        len(work.drawings),
        ".png",
        license="CC0-1.0",
        converted_by="notan",
    )


def write_nnunet_labels(work: Work) -> None:
    """Write the labels with nnU-Net's own writer and read them with its reader."""
    reader = NaturalImage2DIO()
    (work.out / "labelsTr").mkdir(parents=True)
    for name, drawing in work.drawings.items():
        path = str(work.out / f"labelsTr/{name}.png")
        reader.write_seg(drawing.truth()[None], path, {})
        work.same(name, reader.read_seg(path)[0][0, 0].astype(np.uint8))


def write_nnunet(work: Work) -> None:
    """Write three channels in one RGB file, ``_0000``, as nnU-Net's reader of PNG takes them."""
    write_nnunet_json(work, {0: "R", 1: "G", 2: "B"})
    write_nnunet_labels(work)
    for name in work.drawings:
        work.copy("imagesTr", [name], "_0000.png")
    shutil.copytree(work.out / "imagesTr", work.out / "imagesTs")
    for path in (work.out / "imagesTs").iterdir():
        if path.name == "one_0000.png":
            path.rename(path.with_name("nine_0000.png"))
        else:
            path.unlink()


def write_nnunet_channels(work: Work) -> None:
    """Write two channels in two files, ``_0000`` and ``_0001``."""
    write_nnunet_json(work, {0: "phase", 1: "fluorescence"})
    write_nnunet_labels(work)
    for name, drawing in work.drawings.items():
        pixels = drawing.image()
        work.write(f"imagesTr/{name}_0000.png", png(pixels[..., 0]))
        work.write(f"imagesTr/{name}_0001.png", png(255 - pixels[..., 1]))


# Tables


def table(work: Work) -> pd.DataFrame:
    """Return the rows of a table with relative paths."""
    names = list(work.drawings)
    return pd.DataFrame(
        {
            "image": [f"images/{name}.png" for name in names],
            "mask": [f"masks/{name}.png" for name in names],
            "split": ["train" if name in TRAIN else "val" for name in names],
            "group": [f"slide-{'abcd'[number // 2]}" for number, _ in enumerate(names)],
        }
    )


def write_csv(work: Work) -> None:
    """Write CSV by pandas, with grey masks 0, 1, 2."""
    work.copy("images")
    for name, drawing in work.drawings.items():
        work.write(f"masks/{name}.png", png(drawing.truth()))
    table(work).to_csv(work.out / "data.csv", index=False)
    for row in pd.read_csv(work.out / "data.csv").itertuples():
        with Image.open(work.out / row.mask) as mask:
            work.same(Path(row.image).stem, np.array(mask))


def hub_dataset(work: Work, names: list[str], columns: list[str]) -> datasets.Dataset:
    """Return a data set of Hugging Face's kind, with the files' bytes in it."""
    rows = table(work).loc[[list(work.drawings).index(name) for name in names]]
    content = rows[columns].to_dict("list")
    content["image"] = [
        {"bytes": (work.images / f"{name}.png").read_bytes(), "path": f"{name}.png"}
        for name in names
    ]
    content["mask"] = [
        {"bytes": png(work.drawings[name].truth()), "path": f"{name}.png"} for name in names
    ]
    kinds = {each: datasets.Value("string") for each in columns}
    kinds |= {"image": datasets.Image(), "mask": datasets.Image()}
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


def check_parquet(work: Work, path: str, names: list[str]) -> None:
    """Read a Parquet file with ``datasets``."""
    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.Dataset.from_parquet(str(work.out / path), cache_dir=cache)
        for name, row in zip(names, rows, strict=True):
            work.same(name, np.array(row["mask"]))


def write_parquet(work: Work) -> None:
    """Write one Parquet file by ``datasets``: bytes of image and mask, split and group."""
    names = list(work.drawings)
    hub_dataset(work, names, ["split", "group"]).to_parquet(str(work.out / "data.parquet"))
    check_parquet(work, "data.parquet", names)


def write_parquet_hub(work: Work) -> None:
    """Write a Parquet file for each split, named as on the Hub; no other columns."""
    (work.out / "data").mkdir()
    for split, names in zip(("train", "validation"), work.split().values(), strict=True):
        path = f"data/{split}-00000-of-00001.parquet"
        hub_dataset(work, names, []).to_parquet(str(work.out / path))
        check_parquet(work, path, names)
