"""Which kinds of picture are read, which are not and why, by what endings and signatures they are known.

Whoever lists files asks `scanned_endings`, the page docs/kinds.md is made from `KINDS`, and
`hierclass.images.recognition` recognises files by it. Opens no file and imports no decoder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

_CONVERT = "convert it to JPEG or PNG"


@dataclass(frozen=True)
class Kind:
    """A kind of picture, or of file that may be taken for one."""

    name: str
    endings: tuple[str, ...]
    """In lower case, with the dot; the usual one first."""
    read: bool = True
    needs: str = ""
    """The extra of hierclass that reads it: `raw` or `heic`; empty if nothing more is needed."""
    note: str = ""
    """What of it is read, or why it is not read and what to do."""
    formats: tuple[str, ...] = ()
    """Pillow's names for it, that of the class which reads it first."""
    signature: bytes = b""
    """A regular expression that the first bytes of such a file match; empty if they tell nothing."""
    photographs: bool = False
    """Whether it holds photographs that are worth converting, if it is not read."""
    scanned: bool = True
    """Whether folders are searched for it, if it is read; otherwise a file is read where it is named."""


def _unread(name: str, endings: str, note: str, **rest: object) -> Kind:
    return Kind(name, tuple(endings.split()), read=False, note=note, **rest)  # type: ignore[arg-type]


_RAW_ENDINGS = (
    ".dng .nef .nrw .cr2 .cr3 .crw .arw .srf .sr2 .raf .orf .ori .rw2 .rwl .pef .srw .3fr .fff .iiq .x3f .kdc "
    ".dcr .k25 .mrw .erf .mef .mos .gpr .bay"
)

KINDS: tuple[Kind, ...] = (
    Kind(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        note="of several pictures (MPO, panoramas, 3-D) the first",
        formats=("JPEG", "MPO"),
        signature=rb"\xff\xd8\xff",
    ),
    Kind(
        "PNG",
        (".png", ".apng"),
        note="of an animation the picture for programs that know none",
        formats=("PNG",),
        signature=rb"\x89PNG\r\n\x1a\n",
    ),
    Kind(
        "WebP",
        (".webp",),
        note="of an animation the first frame",
        formats=("WEBP",),
        signature=rb"RIFF.{4}WEBPVP8",
    ),
    Kind("GIF", (".gif",), note="the first frame", formats=("GIF",), signature=rb"GIF8[79]a"),
    Kind("BMP", (".bmp",), note="run-length encoded as well", formats=("BMP",), signature=rb"BM"),
    Kind(
        "DIB",
        (".dib",),
        note="a BMP without the first 14 bytes",
        formats=("DIB",),
        signature=rb"\x0c\0\0\0.{4}\x01\0|[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\0",
    ),
    Kind(
        "TIFF",
        (".tif", ".tiff"),
        note="the first page; files of cameras are known as RAW by their content",
        formats=("TIFF",),
        signature=rb"II\x2a\0|MM\0\x2a|II\0\x2a|MM\x2a\0|MM\0\x2b|II\x2b\0",
    ),
    Kind(
        "JPEG 2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        formats=("JPEG2000",),
        signature=rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    ),
    Kind("AVIF", (".avif", ".avifs"), note="of a sequence the first picture", formats=("AVIF",)),
    Kind(
        "PBM, PGM, PPM, PFM",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        note="numbers as text or bytes; PFM in grey",
        formats=("PPM",),
        signature=rb"P[1-6f][\s#]|P0CMYK|Py(P|RGBA|CMYK)\s",
    ),
    Kind(
        "HEIC, HEIF",
        (".heic", ".heif", ".hif"),
        needs="heic",
        note="the main picture, lying as the file says; its EXIF does not count",
        photographs=True,
    ),
    Kind(
        "RAW of cameras",
        tuple(_RAW_ENDINGS.split()),
        needs="raw",
        note="the preview that the camera made, if it is large enough (`preview` is true), else the photograph itself "
        "at half its size",
        photographs=True,
    ),
    Kind(
        "Photoshop (PSD)",
        (".psd",),
        note="all layers together, as Photoshop saved them; 8 or 16 bits",
        formats=("PSD",),
        signature=rb"8BPS\0\x01",
    ),
    Kind(
        "Targa (TGA)",
        (".tga",),
        note="known by its ending, or its last bytes; opacity of 0 everywhere counts as none",
        formats=("TGA",),
    ),
    Kind(
        "QOI",
        (".qoi",),
        note="up to 6 million codes, about as many pixels of a photograph",
        formats=("QOI",),
        signature=rb"qoif",
    ),
    Kind("SGI", (".sgi", ".rgb", ".rgba", ".bw"), formats=("SGI",), signature=rb"\x01\xda[\0\x01][\x01\x02]"),
    Kind("PCX", (".pcx",), formats=("PCX",), signature=rb"\n[\0\x02\x03\x05][\0\x01]"),
    Kind("DCX", (".dcx",), note="several PCX; the first", formats=("DCX",), signature=rb"\xb1\x68\xde\x3a"),
    Kind(
        "DDS",
        (".dds",),
        note="the largest size of the first texture, compressed or not",
        formats=("DDS",),
        signature=rb"DDS ",
    ),
    Kind(
        "Windows icon (ICO)",
        (".ico",),
        note="the largest picture, of the most colours",
        formats=("ICO",),
        signature=rb"\0\0\x01\0",
    ),
    Kind("Sun raster", (".ras",), formats=("SUN",), signature=rb"\x59\xa6\x6a\x95"),
    Kind(
        "Photo CD",
        (".pcd",),
        note="at 768 x 512 pixels; a file that is named, since .pcd in folders is mostly a cloud of points",
        formats=("PCD",),
        scanned=False,
    ),
    _unread(
        "JPEG XL",
        ".jxl",
        f"Pillow has no decoder; {_CONVERT}",
        photographs=True,
        signature=rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    ),
    _unread(
        "Photoshop, large (PSB)",
        ".psb",
        "save it as PSD, TIFF or JPEG",
        photographs=True,
        signature=rb"8BPS\0\x02",
    ),
    _unread(
        "OpenEXR, Radiance",
        ".exr .hdr",
        f"light without a white point; {_CONVERT}",
        photographs=True,
        signature=rb"\x76\x2f\x31\x01|#\?RADIANCE",
    ),
    _unread(
        "GIMP, Krita, Affinity",
        ".xcf .kra .ora .afphoto",
        f"a program's own project; {_CONVERT}",
        photographs=True,
        signature=rb"gimp xcf",
    ),
    _unread(
        "video",
        ".mov .mp4 .m4v .avi .mkv .webm .mpg .mpeg .mts .3gp .wmv",
        "save a frame as JPEG",
        formats=("MPEG",),
        signature=rb"\0\0\x01\xb3|RIFF.{4}AVI |\x1aE\xdf\xa3",
    ),
    _unread("PDF", ".pdf", "a document; save its pages as PNG", signature=rb"%PDF"),
    _unread(
        "PostScript",
        ".eps .ps",
        "a program, which hierclass does not run; save it as PNG",
        formats=("EPS",),
        signature=rb"%!PS|\xc5\xd0\xd3\xc6",
    ),
    _unread(
        "SVG", ".svg .svgz", "a drawing without pixels; save it as PNG", signature=rb"\s*(<\?xml.{0,50})?<svg"
    ),
    _unread(
        "Windows metafile",
        ".wmf .emf",
        "a drawing without pixels; save it as PNG",
        formats=("WMF",),
        signature=rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF",
    ),
    _unread(
        "FITS",
        ".fits .fit",
        "measurements without a white point; save a rendering as PNG",
        formats=("FITS",),
        signature=rb"SIMPLE",
    ),
    _unread(
        "HDF5, GRIB, BUFR",
        ".h5 .hdf .grib .bufr",
        "measurements, which Pillow itself only names",
        formats=("HDF5", "GRIB", "BUFR"),
        signature=rb"\x89HDF\r\n\x1a\n|GRIB|BUFR|ZCZC",
    ),
    _unread(
        "McIDAS",
        ".mcidas",
        "measurements of weather satellites; save a rendering as PNG",
        formats=("MCIDAS",),
        signature=rb"\0\0\0\0\0\0\0\x04",
    ),
    _unread(
        "SPIDER",
        ".spi .spider",
        "measurements of electron microscopes; save a rendering as PNG",
        formats=("SPIDER",),
    ),
    _unread(
        "macOS icon (ICNS)",
        ".icns",
        "icons of programs; save one as PNG",
        formats=("ICNS",),
        signature=rb"icns",
    ),
    _unread(
        "mouse pointer (CUR)",
        ".cur .ani",
        "no picture that one labels; save it as PNG",
        formats=("CUR",),
        signature=rb"\0\0\x02\0(?!\0\0)",
    ),
    _unread(
        "XBM, XPM",
        ".xbm .xpm",
        "icons as C programs; save them as PNG",
        formats=("XBM", "XPM"),
        signature=rb"/\* XPM \*/",
    ),
    _unread(
        "MSP",
        ".msp",
        "drawings of Windows 1 and 2 in black and white; the ending is now that of updates",
        formats=("MSP",),
        signature=rb"DanM|LinS",
    ),
    _unread(
        "FLI, FLC",
        ".fli .flc",
        "animations of the 1990s; save a frame as PNG",
        formats=("FLI",),
        signature=rb".{4}[\x11\x12]\xaf",
    ),
    _unread("IM", ".im", "LabEye, a format of the 1980s; save it as PNG", formats=("IM",)),
    _unread("IM Tools", ".imt", "a format of the 1980s; save it as PNG", formats=("IMT",)),
    _unread(
        "PIXAR",
        ".pxr",
        "a format of the 1980s; save it as PNG",
        formats=("PIXAR",),
        signature=rb"\x80\xe8\0\0",
    ),
    _unread(
        "XV thumbnail",
        ".p7",
        "thumbnails in 256 colours of a viewer of the 1990s",
        formats=("XVTHUMB",),
        signature=rb"P7 332",
    ),
    _unread("IPTC", ".iim", "notes about a picture of newspapers", formats=("IPTC",)),
    _unread("GIMP brush", ".gbr", "a brush; save it as PNG", formats=("GBR",), signature=rb".{20}GIMP"),
    _unread(
        "BLP",
        ".blp",
        "textures of one game; save them as PNG or DDS",
        formats=("BLP",),
        signature=rb"BLP[12]",
    ),
    _unread(
        "FTEX",
        ".ftc .ftu",
        "textures of one game; save them as PNG or DDS",
        formats=("FTEX",),
        signature=rb"FTEX",
    ),
)

_MODULES = {"raw": "rawpy", "heic": "pillow_heif"}
_BY_ENDING = {ending: kind for kind in KINDS for ending in kind.endings}


def kind_of(ending: str) -> Kind | None:
    """The kind that files of an ending such as `.jpg` (any case) usually are; None if there is none in the table."""
    return _BY_ENDING.get(ending.lower())


def is_installed(extra: str) -> bool:
    """Whether what an extra of hierclass brings (`raw` or `heic`) can be imported; true of no extra."""
    return not extra or importlib.util.find_spec(_MODULES[extra]) is not None


def scanned_endings() -> frozenset[str]:
    """The endings, in lower case with the dot, of the files that are images where a folder or archive is searched.

    Those of RAW only where they can be read: they often lie beside a JPEG of the same photograph. Those of HEIC
    always: a row that says what to install is better than a photograph that is silently missing.
    """
    return frozenset(
        ending
        for kind in KINDS
        if kind.read and kind.scanned and (kind.needs != "raw" or is_installed("raw"))
        for ending in kind.endings
    )


def photograph_advice(endings: Iterable[str]) -> str:
    """Say how photographs of kinds that are not read here can be read; empty if no ending is that of such a kind."""
    missing: dict[str, list[str]] = {}
    for ending in sorted({ending.lower() for ending in endings}):
        kind = kind_of(ending)
        if kind is None or not kind.photographs or (kind.read and is_installed(kind.needs)):
            continue
        how = install_command(kind.needs) + " reads" if kind.needs else "convert to JPEG or PNG:"
        missing.setdefault(how, []).append(ending)
    return "; ".join(f"{how} {', '.join(found)}" for how, found in sorted(missing.items(), reverse=True))


def done_installs() -> tuple[str, ...]:
    """The commands of `install_command` whose extras are there; an error that names one can be gone by now."""
    return tuple(install_command(extra) for extra in _MODULES if is_installed(extra))


def install_command(extra: str) -> str:
    """What to type to install an extra."""
    return f"pip install 'hierclass[{extra}]'"
