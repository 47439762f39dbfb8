"""Carry prediction to a hundred million images, on paper, from rates that were measured.

Run by hand, after ray_prediction.py: python benchmarks/hundred_million.py
Measures what the process that hands out the blocks keeps and writes for each image, with a folder
of --files empty files and as many made-up rows, and the bytes of an image and its mask, with 64 of
../shared/data/pets-unlabelled and the default model (or --model). The rate of a worker is taken
from benchmarks/results/ray_prediction.json. Prices, request rates and interruptions are other
people's, each with its address. Writes benchmarks/results/hundred_million.json and .md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import notan
from notan.io.digest import sha256
from notan.prediction.inputs import find_inputs
from notan.prediction.pixels import encode_png, mask_image
from notan.prediction.table import TABLE, PredictionTable, Row
from notan.scale.blocks import IMAGES_IN_BLOCK, Block, Manifest, Merged
from results import FOLDER, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pets-unlabelled" / "images"
SAMPLE = 64
JOB = 100_000_000
HOURS = 24.0
"""In which the job is to be done."""


T = TypeVar("T")


class Cited(NamedTuple):
    """What somebody else found: how much, of what, and where it stands."""

    value: float
    what: str
    source: str


PRICES = "https://cloudprice.app/blog/spot-instance-economics-when-interruption-fine"
REQUESTS = (
    "https://devnotes.tech/understanding-aws-s3-pricing-a-complete-cost-breakdown-with-examples"
)
LIMITS = "https://docs.aws.amazon.com/AmazonS3/latest/dev/request-rate-perf-considerations.html"
CORE_HOUR = Cited(0.016, "$ an hour for a spot core (c6i.xlarge: 0.051 to 0.077 for four)", PRICES)
GPU_HOUR = Cited(0.40, "$ an hour for a spot GPU, an A10G (g5.xlarge: 0.30 to 0.50)", PRICES)
LOST_A_MONTH = Cited(0.05, "of spot machines are taken back in a month", PRICES)
GPU_LOST_A_MONTH = Cited(0.20, "of spot machines with a GPU are, at worst", PRICES)
PUT = Cited(0.005 / 1000, "$ a PUT", REQUESTS)
GET = Cited(0.0004 / 1000, "$ a GET", REQUESTS)
GIGABYTE_MONTH = Cited(0.023, "$ a gigabyte a month", REQUESTS)
PUTS_A_SECOND = Cited(3500, "PUTs a second, for each prefix of a bucket", LIMITS)
MONTH_HOURS = 730


class Measured(NamedTuple):
    """What was measured here.

    Attributes:
        rate: Images a second of one worker on one core, files to files.
        image_bytes: Of an image's file.
        mask_bytes: Of its mask's.
        list_bytes: That the list of files holds for each image.
        list_seconds: To find it.
        row_bytes: That manifests and tables hold for each.
        row_seconds: To write it into the tables once.
        table_bytes: Of it in predictions.csv.
        manifest_bytes: Of it in its block's manifest.
    """

    rate: float
    image_bytes: float
    mask_bytes: float
    list_bytes: float
    list_seconds: float
    row_bytes: float
    row_seconds: float
    table_bytes: float
    manifest_bytes: float


def grown(action: Callable[[], T]) -> tuple[float, float, T]:
    """Return the seconds of an action, the bytes that its result holds, and the result.

    It is done twice: to count bytes takes time.
    """
    begun = time.perf_counter()
    action()
    seconds = time.perf_counter() - begun
    tracemalloc.start()
    result = action()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, held, result


def manifest_of(numbers: range) -> Manifest:
    """Make up what a worker says of a block."""
    names = [f"{number:09d}" for number in numbers]
    digests = [sha256(name) for name in names]
    rows = [
        Row(
            name=name,
            image=f"photos/{name}.jpg",
            height=375,
            width=500,
            foreground_fraction=0.412345,
            expected_dice=0.9431,
            needs_review="no",
            digest=digest,
        )
        for name, digest in zip(names, digests, strict=True)
    ]
    outputs = {f"masks/{name}.png": digest for name, digest in zip(names, digests, strict=True)}
    files = {row.image: row.digest for row in rows}
    return Manifest(rows=tuple(rows), digests=files, outputs=outputs)


def measure(files: int, model: Path | None) -> Measured:
    """Measure on this machine."""
    rows = json.loads((FOLDER / "ray_prediction.json").read_bytes())["rows"]
    [one] = [row for row in rows if row["what"] == "1 worker"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        folder.mkdir()
        for number in range(files):
            (folder / f"{number:09d}.jpg").touch()
        list_seconds, list_bytes, _ = grown(lambda: find_inputs([folder]))

        def told() -> list[tuple[Block, Manifest]]:
            starts = range(0, files, IMAGES_IN_BLOCK)
            return [
                (Block(start, ()), manifest_of(range(start, min(start + IMAGES_IN_BLOCK, files))))
                for start in starts
            ]

        def merge() -> Merged:
            merged = Merged(PredictionTable(Path(place)))
            for block, manifest in told():
                merged.note(block, manifest)
            merged.save()
            return merged

        _, row_bytes, result = grown(merge)
        begun = time.perf_counter()
        result.save()
        row_seconds = time.perf_counter() - begun
        table_bytes = (Path(place) / TABLE).stat().st_size
    photographs = sorted(IMAGES.iterdir())[:SAMPLE]
    predictor = notan.load(model, device="cpu", threads=1)
    masks = [len(encode_png(mask_image(predictor(path).mask))) for path in photographs]
    return Measured(
        rate=one["images a second"]["median"],
        image_bytes=fmean(path.stat().st_size for path in photographs),
        mask_bytes=fmean(masks),
        list_bytes=list_bytes / files,
        list_seconds=list_seconds / files,
        row_bytes=row_bytes / files,
        row_seconds=row_seconds / files,
        table_bytes=table_bytes / files,
        manifest_bytes=len(manifest_of(range(IMAGES_IN_BLOCK)).model_dump_json()) / IMAGES_IN_BLOCK,
    )


def carried(found: Measured) -> list[dict[str, object]]:
    """Return the rows of the job."""
    cores = JOB / (found.rate * HOURS * 3600)
    blocks = JOB / IMAGES_IN_BLOCK
    block_seconds = IMAGES_IN_BLOCK / found.rate
    machines = cores / 4
    lost = machines * LOST_A_MONTH.value * HOURS / MONTH_HOURS
    gpus_lost = machines * GPU_LOST_A_MONTH.value / MONTH_HOURS
    read, written = JOB * found.image_bytes, JOB * found.mask_bytes
    puts = JOB + blocks
    core_hours = JOB / found.rate / 3600
    return [
        _row("cores for it in a day", cores, "measured rate"),
        _row("blocks of 256 images", blocks, "count"),
        _row("seconds that a core is at a block", block_seconds, "measured rate"),
        _row("read, TB", read / 1e12, "measured size"),
        _row("read by all together, MB a second", read / (HOURS * 3600) / 1e6, "measured size"),
        _row("masks written, TB", written / 1e12, "measured size"),
        _row("PUTs a second", puts / (HOURS * 3600), f"count; {PUTS_A_SECOND.value:,} allowed"),
        _row("machines of four cores", machines, "measured rate"),
        _row("of them lost an hour", lost / HOURS, "cited"),
        _row("of them lost an hour, were they as short-lived as GPUs", gpus_lost, "cited"),
        _row("core-hours done again for that", lost * 4 * block_seconds / 2 / 3600, "both"),
        _row("$ for spot cores", core_hours * CORE_HOUR.value, "measured rate, cited price"),
        _row("$ for PUTs and GETs", puts * PUT.value + JOB * GET.value, "count, cited price"),
        _row(
            "$ a month to keep images and masks",
            (read + written) / 1e9 * GIGABYTE_MONTH.value,
            "measured size, cited price",
        ),
        _row(
            "images a second at which a spot GPU costs as much as cores",
            found.rate * GPU_HOUR.value / CORE_HOUR.value,
            "measured rate, cited prices",
        ),
        _row("memory for the list of files, GB", JOB * found.list_bytes / 1e9, "measured"),
        _row("minutes to make that list", JOB * found.list_seconds / 60, "measured, local disk"),
        _row("memory for rows and manifests, GB", JOB * found.row_bytes / 1e9, "measured"),
        _row("minutes to write the tables once", JOB * found.row_seconds / 60, "measured"),
        _row("predictions.csv, GB", JOB * found.table_bytes / 1e9, "measured"),
        _row("manifests, GB", JOB * found.manifest_bytes / 1e9, "measured"),
        _row(
            "images for which 16 GB of memory are enough",
            16e9 / (found.list_bytes + found.row_bytes),
            "measured",
        ),
    ]


def _row(what: str, value: float, basis: str) -> dict[str, object]:
    return {"what": what, "value": value, "from": basis}


def main() -> None:
    """Measure, carry and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--model", type=Path, help="a model file; None: the default model")
    wanted = parser.parse_args()
    found = measure(wanted.files, wanted.model)
    cited = (CORE_HOUR, GPU_HOUR, LOST_A_MONTH, GPU_LOST_A_MONTH, PUT, GET, GIGABYTE_MONTH)
    write_results(
        "hundred_million",
        f"{JOB:,} images in {HOURS:.0f} hours, on paper",
        carried(found),
        [
            f"Measured here: {found.rate:.2f} images a second of a worker on one core, files to "
            f"files; {found.image_bytes:,.0f} bytes an image, {found.mask_bytes:,.0f} a mask; the "
            f"list of files holds {found.list_bytes:,.0f} bytes an image, rows and manifests "
            f"{found.row_bytes:,.0f}, with {wanted.files:,} files.",
            *(f"Cited: {each.value:.3g} {each.what} ({each.source})." for each in cited),
            f"Cited: {PUTS_A_SECOND.value:,} {PUTS_A_SECOND.what} ({PUTS_A_SECOND.source}).",
        ],
    )


if __name__ == "__main__":
    main()
