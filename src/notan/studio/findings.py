"""The doctor's findings beside the images they are about: of a report, or looked for meanwhile.

The data doctor reads every image and mask once. It does so in a process of its own, below all that
the page asks for, for a bounded time; what it found is kept for the next start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse
from starlette.routing import Route

from notan.checking.diagnosis import SEVERITIES, Finding, worst_first
from notan.config import Data, SystemPath
from notan.data.folders import find_layout
from notan.data.samples import stored_in
from notan.data.survey import stamp_of
from notan.errors import DataError, NotanError
from notan.io.digest import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from notan.studio.gallery import Gallery

logger = logging.getLogger("notan")

COMMAND = (sys.executable, "-m", "notan.cli.examining")
START_SECONDS = 4.0
"""For which it waits at first: somebody is about to open the page."""

MOST_SECONDS = 1800.0
MOST_REPORT_BYTES = 200_000_000
"""Of a check.json; one of a hundred thousand images with a finding each has 50 MB."""

MOST_SAID_BYTES = 100_000
SECONDS_TO_END = 5.0
WITHOUT_MASK = "image-without-mask"
"""An error in a training, and here what a person is about to mend."""

State = Literal["looking", "known", "none", "failed"]


class CheckReport(BaseModel):
    """What is asked of a check.json.

    Attributes:
        folder: The data folder, as the check was told of it.
        findings: What was found in it.
    """

    folder: SystemPath
    findings: tuple[Finding, ...]


class Known(NamedTuple):
    """What the doctor has said.

    Attributes:
        state: ``looking`` it is at work, ``none`` there are no masks to look at.
        said: A line about it, where there is one.
        findings: Of each image that any is about, by its id, the worst first.
    """

    state: State
    said: str = ""
    findings: Mapping[str, Sequence[Finding]] = {}


class Doctor:
    """What the data doctor says of the images of a gallery."""

    def __init__(self, gallery: Gallery, data: Data, cache: Path, report: Path | None) -> None:
        """Read a report, or make ready to look; nothing is looked for before ``start``.

        Args:
            gallery: The images.
            data: Where they lie and how masks are read.
            cache: A folder that keeps what was found.
            report: A check.json; None: the doctor looks, where there are masks.

        Raises:
            DataError: The report cannot be read, or is about other images.
        """
        self.gallery, self.data, self.cache = gallery, data, cache
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._look, name="doctor", daemon=True)
        self._known = Known("none")
        if report is not None:
            told = read_report(report)
            self._known = self._match(told)
            places = {_place(file, told.folder) for each in told.findings for file in each.files}
            if places and data.path and not any(map(partial(_is_in, data.path), places)):
                raise DataError(
                    f"{report}: none of the files that it names is in {data.path}; give the "
                    "check.json that notan check wrote for this folder"
                )
        elif _has_masks(data):
            self._known = Known("looking")

    def start(self) -> None:
        """Begin to look, where there is something to look at."""
        if self._known.state == "looking":
            self._thread.start()

    def stop(self) -> None:
        """End the doctor, whatever it is at."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        if self._thread.ident is not None:
            self._thread.join(SECONDS_TO_END)

    def routes(self) -> list[Route]:
        """Return what the page may ask for."""
        return [Route("/api/findings", self.tell, methods=["GET"])]

    def tell(self, request: Request) -> Response:
        """Return what is known, each finding as its severity, kind and message."""
        del request
        known = self._known
        kinds = Counter(
            (each.severity, each.kind)
            for findings in known.findings.values()
            for each in {found.kind: found for found in findings}.values()
        )
        ordered = sorted(kinds.items(), key=lambda each: (SEVERITIES.index(each[0][0]), each[0][1]))
        return JSONResponse(
            {
                "state": known.state,
                "said": known.said,
                "kinds": [[severity, kind, count] for (severity, kind), count in ordered],
                "images": {
                    image: [[each.severity, each.kind, each.message] for each in findings]
                    for image, findings in known.findings.items()
                },
            }
        )

    def _look(self) -> None:
        self._stopped.wait(START_SECONDS)
        try:
            path = self.cache / f"{self._digest()}.json"
            if not path.is_file():
                self._examine(path)
            if not self._stopped.is_set():
                self._known = self._match(read_report(path))
        except NotanError as error:
            self._known = Known("failed", str(error))
        except Exception as error:
            logger.exception("the data doctor could not look at %s", self.data.path)
            self._known = Known("failed", f"the data doctor failed ({type(error).__name__})")

    def _examine(self, path: Path) -> None:
        """Have another process write what it finds, and wait for it.

        Raises:
            DataError: It found nothing to look at, took too long, or ended without a word.
        """
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                [*COMMAND, str(path)], stdin=subprocess.PIPE, stdout=said, stderr=said
            )
            if self._stopped.is_set():  # it may have been since before there was a process
                self._process.kill()
            code = self._wait(self._process)
            said.seek(0)
            words = said.read(MOST_SAID_BYTES).decode("utf-8", "replace").splitlines()
        if code:
            raise DataError(words[-1] if words else f"the doctor's exit code was {code}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Tell the process what to look at, and return its exit code."""
        told = self.data.model_dump_json().encode() + b"\n"
        try:
            if process.stdin is not None:
                process.stdin.write(told)
                process.stdin.flush()  # and stays open: it ends when this process does
            return process.wait(MOST_SECONDS)
        except BrokenPipeError:
            return process.wait()
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise DataError(
                f"the data doctor was not done in {MOST_SECONDS / 60:.0f} minutes; run notan check "
                f"--data-path {self.data.path}, and give its check.json with --findings"
            ) from error
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def _digest(self) -> str:
        """Return a digest of what it would look at: settings, files and when they changed."""
        files = (
            f"{image.path}{stamp_of(image.path)}{image.mask}"
            f"{stamp_of(stored_in(image.mask)) if image.mask else ''}"
            for image in self.gallery.images
        )
        return sha256(self.data.model_dump_json(), *files)[:32]

    def _match(self, report: CheckReport) -> Known:
        """Return the findings of a report that are about images of the gallery."""
        by_place: dict[str, list[str]] = defaultdict(list)
        for image in self.gallery.images:
            for file in filter(None, (image.path, image.mask)):
                by_place[_place(file, self.data.path or file)].append(image.id)
        found: dict[str, list[Finding]] = defaultdict(list)
        for finding in worst_first(report.findings):
            if finding.kind == WITHOUT_MASK:
                continue
            words = finding.message.replace(f"{report.folder}{os.sep}", "")
            places = (_place(file, report.folder) for file in finding.files)
            for number in dict.fromkeys(each for place in places for each in by_place[place]):
                found[number].append(replace(finding, message=words))
        return Known("known", findings=found)


def _has_masks(data: Data) -> bool:
    try:
        find_layout(data)
    except NotanError:
        return False
    return True


def read_report(path: Path) -> CheckReport:
    """Read a check.json.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    try:
        if path.stat().st_size > MOST_REPORT_BYTES:
            raise DataError(
                f"{path}: has more than {MOST_REPORT_BYTES:,} bytes; is it a check.json?"
            )
        return CheckReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
    except ValidationError as error:
        raise DataError(
            f"{path}: this is no check.json as notan check writes it ({error.error_count()} faults)"
        ) from error


def _is_in(folder: Path, place: str) -> bool:
    return Path(os.path.normpath(folder / place)).exists()


def _place(path: Path, folder: Path) -> str:
    """Return where a file lies as seen from the data folder, wherever that lies now."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return str(path)
