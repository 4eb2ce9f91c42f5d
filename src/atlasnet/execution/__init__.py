"""Where work runs: device, threads, progress, cancellation, and files that survive a power cut."""

from atlasnet.execution.allocator import give_back_memory, kept_memory
from atlasnet.execution.archive import Unpacked, pack, unpack
from atlasnet.execution.context import Execution
from atlasnet.execution.files import (
    allow_open_files,
    atomic_folder,
    atomic_path,
    copy_file,
    digest,
    file_digest,
    json_text,
    made_alone,
    move,
    read_json,
    reading_back,
    remains_in,
    remove_begun,
    require_absent,
    write_json,
)
from atlasnet.execution.folders import files_below, leads_nowhere, place_of, walk
from atlasnet.execution.locks import hold, hold_folder
from atlasnet.execution.log import Hidden, LogReporter, open_log, unwritable_log
from atlasnet.execution.memory import memory_held, memory_left
from atlasnet.execution.plain import make_plain, plain
from atlasnet.execution.reporter import NamingReporter, Reporter, SilentReporter, TextReporter, WitnessReporter, say
from atlasnet.execution.side_by_side import in_order
from atlasnet.execution.stages import Stages, peak_memory
from atlasnet.execution.tensors import save_tensors
from atlasnet.execution.work import WorkFolder

__all__ = [
    "Execution",
    "Hidden",
    "LogReporter",
    "NamingReporter",
    "Reporter",
    "SilentReporter",
    "Stages",
    "TextReporter",
    "Unpacked",
    "WitnessReporter",
    "WorkFolder",
    "allow_open_files",
    "atomic_folder",
    "atomic_path",
    "copy_file",
    "digest",
    "file_digest",
    "files_below",
    "give_back_memory",
    "hold",
    "hold_folder",
    "in_order",
    "json_text",
    "kept_memory",
    "leads_nowhere",
    "made_alone",
    "make_plain",
    "memory_held",
    "memory_left",
    "move",
    "open_log",
    "pack",
    "peak_memory",
    "place_of",
    "plain",
    "read_json",
    "reading_back",
    "remains_in",
    "remove_begun",
    "require_absent",
    "save_tensors",
    "say",
    "unpack",
    "unwritable_log",
    "walk",
    "write_json",
]
