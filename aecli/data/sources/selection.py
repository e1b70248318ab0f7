"""Which files of a source are images to read, and what is passed over: nothing that looks like an image vanishes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aecli.errors import count_of, name_examples

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2",
            ".ppm", ".pgm", ".pnm")  # fmt: skip

# Suffix -> what to do with images of kinds that are not read.
_CONVERT = "convert them to PNG or JPEG, such as by: magick mogrify -format png"
UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".jxl", ".psd", ".tga", ".ico", ".svg", ".pcx", ".j2k", ".pbm", ".xcf",
                     ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), _CONVERT),
    **dict.fromkeys((".exr", ".hdr", ".pfm", ".dcm", ".nii"), "convert them to 8- or 16-bit PNG"),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5"), "save their arrays as PNG, or pass them in Python"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg"), "extract their frames as PNG"),
    ".pdf": "save their pages as PNG",
}  # fmt: skip

# Folders of thumbnails and deleted files, which systems and NAS devices put beside the data.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found",
                            "System Volume Information"})  # fmt: skip
# What a run's folder holds: `config.json` and one of these.
_RUN_FILES = frozenset({"model.safetensors", "last.safetensors", "metrics.csv"})
RUN_PICTURES = frozenset({"curves.png", "previews"})


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image that is read."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(part: str) -> bool:
    """Whether a part of a path is a dot-file or dot-folder (`.Trash-1000` is one)."""
    return part.startswith(".") and part != ".."


def is_run_folder(names: Iterable[str]) -> bool:
    """Whether a folder with these entries holds a run of aecli."""
    found = set(names)
    return "config.json" in found and not found.isdisjoint(_RUN_FILES)


@dataclass
class Selection:
    """Chooses the images of one source, and collects what it passes over."""

    unread: dict[str, list[str]] = field(default_factory=dict)  # suffix -> names
    system_folders: dict[str, int] = field(default_factory=dict)  # name -> how many there are
    outputs: list[str] = field(default_factory=list)  # run folders, and what the command itself writes

    def wants(self, path: str) -> bool:
        """Whether the file at this relative path is an image to read."""
        *folders, name = path.split("/")
        if any(map(is_hidden, (*folders, name))):
            return False
        if system := next((folder for folder in folders if folder in SYSTEM_FOLDERS), None):
            self.system_folders.setdefault(system, 1)
            return False
        return self.wants_name(name, path)

    def wants_name(self, name: str, path: str) -> bool:
        """Whether the file of that name is an image to read, by its suffix."""
        if is_image_name(name):
            return True
        dot = name.rfind(".")
        if dot > 0 and (suffix := name[dot:].lower()) in UNREAD:
            self.unread.setdefault(suffix, []).append(path)
        return False

    def wants_folder(self, name: str) -> bool:
        """Whether to look into the folder of that name."""
        if name in SYSTEM_FOLDERS:
            self.system_folders[name] = self.system_folders.get(name, 0) + 1
            return False
        return not is_hidden(name)

    def notices(self, source: str) -> Iterator[str]:
        """Yield a line for each kind of what was passed over."""
        for suffix, names in sorted(self.unread.items()):
            files = count_of(len(names), f"{suffix} file")
            yield f"{source}: {files} not read: {name_examples(names, len(names))} ({UNREAD[suffix]})"
        if self.system_folders:
            folders = count_of(sum(self.system_folders.values()), "system folder")
            yield f"{source}: {folders} left out: {', '.join(sorted(self.system_folders))}"
        if self.outputs:
            outputs = count_of(len(self.outputs), "output")
            yield f"{source}: {outputs} of aecli left out: {name_examples(self.outputs, len(self.outputs))}"
