"""What a header says of the patient: forgotten when it is read, out of its description too, but for a hash."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from pydicom.dataset import Dataset

from atlasnet.execution import digest

_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber")
_OTHERS = "OtherPatientIDsSequence"
PATIENT = [*_NAMES, *_NUMBERS, _OTHERS, "IssuerOfPatientID", "PatientBirthDate"]
"""What is read of the patient, and forgotten."""

_HIDDEN = "***"
_RUNS = re.compile(r"[^\W\d_]+|\d+")  # of letters, and of digits
_UNMARKED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "æ": "a", "œ": "o"})
_WITHIN = 4  # letters or digits by which a longer word is known too
_SYLLABLES = "\u2e80"  # from here on a character is more than a letter: Chinese, Japanese, Korean


def forget_patient(header: Dataset) -> None:
    """Take what names the patient out of a header, and out of its description, where people type it too.

    In place of PatientID stays a hash of it and its issuer, or else of the name: patients can be told apart by it.

    Args:
        header: with the elements `PATIENT`.
    """
    texts = [str(header.get(keyword) or "") for keyword in (*_NAMES, *_NUMBERS)]
    texts += [str(item.get("PatientID") or "") for item in header.get(_OTHERS) or ()]
    born = re.sub(r"\D", "", str(header.get("PatientBirthDate") or ""))
    known = [str(header.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID")]
    patient = digest(known if known[0] else ["", str(header.get("PatientName") or "").strip()])
    for keyword in PATIENT:
        if keyword in header:
            del header[keyword]
    header.PatientID = patient
    if "SeriesDescription" in header:
        header.SeriesDescription = _without(str(header.SeriesDescription), texts, born)


def _without(text: str, told: Iterable[str], born: str) -> str:
    """A text without the words of others and without a date (YYYYMMDD, or empty)."""
    for date in _dates(born):
        text = re.sub(rf"(?<!\d){date}(?!\d)", _HIDDEN, text)
    parts = {_plain(run) for words in told for run in _RUNS.findall(unicodedata.normalize("NFC", words))}
    parts = {part for part in parts if len(part) > 1 or part > _SYLLABLES}

    def hidden(run: re.Match[str]) -> str:
        return _HIDDEN if any(_tells(_plain(run[0]), part) for part in parts) else run[0]

    return re.sub(rf"({re.escape(_HIDDEN)})+", _HIDDEN, _RUNS.sub(hidden, unicodedata.normalize("NFC", text)))


def _dates(day: str) -> Iterator[str]:
    """Patterns of how a date (YYYYMMDD) is written in digits."""
    if len(day) == 8:
        year, month, date = f"(?:{day[:2]})?{day[2:4]}", f"0?{day[4:6].lstrip('0')}", f"0?{day[6:].lstrip('0')}"
        for order in ((year, month, date), (date, month, year), (month, date, year)):
            yield "{}(?P<mark>[-./ _]?){}(?P=mark){}".format(*order)


def _tells(run: str, part: str) -> bool:
    """Whether a run of letters or digits holds a part of a name or number: JMUELLER, but not every word with an Ed."""
    if len(part) >= _WITHIN or part > _SYLLABLES:
        return part in run
    return part in run and len(run) <= len(part) + part.isalpha()  # one more letter may be an initial


def _plain(text: str) -> str:
    """A word without case, marks and the spellings that stand for them: Müller, Mueller and MULLER are one."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return re.sub("(?<=[aou])e", "", bare.translate(_UNMARKED))
