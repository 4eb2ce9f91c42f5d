"""Whose scan it is, and of which study: what is taken over from its header as far as that is valid.

The modules Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study (DICOM PS3.3 C.7.1.1,
C.7.1.3, C.7.2.1 to C.7.2.3), which all objects of a study have in common.
"""

from __future__ import annotations

import re
from typing import Any

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM, validate_value

from atlasnet.prediction.dicom_text import LONGEST_STRING

UTF_8 = "ISO_IR 192"

REQUIRED = (  # what every object of a study has, known or empty
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_PATIENT = """
    ReferencedPatientSequence IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence
    SourcePatientGroupIdentificationSequence GroupOfPatientsIdentificationSequence PatientBirthTime
    PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar
    QualityControlSubject StrainDescription StrainNomenclature StrainStockSequence StrainAdditionalInformation
    StrainCodeSequence GeneticModificationsSequence OtherPatientNames OtherPatientIDs OtherPatientIDsSequence
    EthnicGroup EthnicGroupCodeSequence PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription
    PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientComments PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
"""
_TRIAL = """
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName IssuerOfClinicalTrialProtocolID
    OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID ClinicalTrialSiteName IssuerOfClinicalTrialSiteID
    ClinicalTrialSubjectID IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    IssuerOfClinicalTrialSubjectReadingID ClinicalTrialProtocolEthicsCommitteeName
    ClinicalTrialProtocolEthicsCommitteeApprovalNumber ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    LongitudinalTemporalOffsetFromEvent LongitudinalTemporalEventType ClinicalTrialTimePointTypeCodeSequence
    IssuerOfClinicalTrialTimePointID ConsentForClinicalTrialUseSequence
"""
_STUDY = """
    IssuerOfAccessionNumberSequence ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence StudyDescription ProcedureCodeSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence ReferencedStudySequence RequestingService
    RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientSizeCodeSequence PatientBodyMassIndex
    MeasuredAPDimension MeasuredLateralDimension PatientWeight MedicalAlerts Allergies Occupation SmokingStatus
    AdditionalPatientHistory PregnancyStatus LastMenstrualDate PatientSexNeutered ReasonForVisit
    ReasonForVisitCodeSequence AdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID ServiceEpisodeDescription
    IssuerOfServiceEpisodeIDSequence PatientState TimezoneOffsetFromUTC
"""
OPTIONAL = (*_PATIENT.split(), *_TRIAL.split(), *_STUDY.split())
"""What they may have beside it, those that the standard has retired too."""

_OFFSET = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_CUT = ("DeidentificationMethod", "StudyDescription")  # where the beginning of a long text is better than none


def identity(header: Dataset) -> Dataset:
    """Patient, study and frame of reference, in UTF-8.

    What every object must have and is not known or not valid is empty, as is what else stands there and is not valid.
    """
    kept = Dataset()
    kept.SpecificCharacterSet = UTF_8
    for keyword in REQUIRED:
        setattr(kept, keyword, _known(keyword, header.get(keyword)))
    for keyword in OPTIONAL:
        if keyword in header:
            setattr(kept, keyword, copied(header, keyword))
    kept.FrameOfReferenceUID = header.FrameOfReferenceUID
    kept.PositionReferenceIndicator = str(header.get("PositionReferenceIndicator") or "")
    return kept


def _known(keyword: str, value: Any) -> str:
    """The value as text; empty where it is a date, a time or a sex that there is not."""
    if value is None or value == "":
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    kind = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}.get(keyword)
    try:
        known = kind is None or kind(text) is not None
    except ValueError:
        known = False
    return text if known and (keyword != "PatientSex" or text in ("M", "F", "O")) else ""


def copied(header: Dataset, keyword: str) -> Any:
    """The value of an element, empty where it is not valid."""
    try:
        return _valid(keyword, header.get(keyword))
    except Exception:  # pydicom converts values when they are asked for, and fails in many ways
        return [] if dictionary_VR(keyword) == "SQ" else None


def _valid(keyword: str, value: Any) -> Any:
    """The value for an object in UTF-8.

    Raises:
        ValueError: it is not valid.
    """
    kind = dictionary_VR(keyword)
    if kind == "SQ":
        return [_item(item) for item in value or ()]
    if value is None or value == "":
        return None
    values = list(value) if isinstance(value, MultiValue) else [value]
    if not isinstance(values[0], (int, float)) or kind in ("DS", "IS"):
        values = [str(one) for one in values]  # as it is written
    if keyword in _CUT:
        values = [one[:LONGEST_STRING].rstrip() for one in values]
    if len(values) > 1 and dictionary_VM(keyword) == "1":
        raise ValueError("more values than one")
    if keyword == "TimezoneOffsetFromUTC" and not _OFFSET.fullmatch(values[0]):
        raise ValueError("no distance of a clock from UTC")
    for one in values:
        validate_value(kind, one, RAISE)
    return values if len(values) > 1 else values[0]


def _item(item: Dataset) -> Dataset:
    """An item of a sequence without private elements."""
    kept = Dataset()
    for element in item:
        if element.keyword and element.keyword != "SpecificCharacterSet":
            setattr(kept, element.keyword, _valid(element.keyword, element.value))
    return kept
