"""What a file is that is no picture the program reads, by its first bytes or its suffix, and what makes one of it."""

from __future__ import annotations

import re

HEAD = 512  # bytes that `kind_of` looks at

_AS_PNG = "convert it to PNG or TIFF"
RAW = "a camera's raw file; develop it to TIFF or JPEG, by darktable or RawTherapee for example"
_DAMAGED = "begins as a {} does, and is damaged or only part of one"
# What a file begins with, and what is said of it. Pictures that are read stand here for those that could not be.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n", _DAMAGED.format("PNG")),
    (rb"\xff\xd8\xff", _DAMAGED.format("JPEG")),
    (rb"GIF8", _DAMAGED.format("GIF")),
    (rb"RIFF....WEBP", _DAMAGED.format("WebP")),
    (rb"(II[*+]\0|MM\0[*+])", _DAMAGED.format("TIFF")),
    (rb"....ftyp(avif|avis)", _DAMAGED.format("AVIF file")),
    (rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)", f"a JPEG 2000 file; {_AS_PNG}"),
    (rb"(\0\0\0\x0cJXL |\xff\x0a)", f"a JPEG XL file; {_AS_PNG}"),
    (rb"8BPS", f"a Photoshop document; {_AS_PNG}"),
    (rb"(%PDF|%!PS|\xc5\xd0\xd3\xc6)", "a PDF or PostScript file; draw its pages as PNG"),
    (
        rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg\b",
        "an SVG drawing; draw it as PNG",
    ),
    (rb".{128}DICM", "a DICOM file; write its values as TIFF, by pydicom and tifffile for example"),
    (
        rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}n(i1|\+1)\0",
        "a NIfTI volume; write its slices as TIFF, by nibabel and tifffile for example",
    ),
    (rb"(....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|IIU\0|\0MRM|FOVb)", RAW),
    (rb"(....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI )", "a film; write its frames as pictures, by ffmpeg for example"),
    (rb"\x93NUMPY", "an array of NumPy; write it as TIFF, by tifffile for example"),
    (rb"\x89HDF\r\n", "an HDF5 file; write its values as TIFF, by h5py and tifffile for example"),
    (rb"SIMPLE  =", "a FITS file; write its values as TIFF, by astropy and tifffile for example"),
    (rb"(\x76\x2f\x31\x01|#\?RADIANCE|#\?RGBE)", "a picture of wide range (OpenEXR, Radiance); convert it to TIFF"),
    (rb"\0\0\x01\0", f"an icon; {_AS_PNG}"),
    (rb"(PK\x03\x04|\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!|\xfd7zXZ\0|BZh|\x28\xb5\x2f\xfd)", "an archive; unpack it"),
)
_KNOWN = tuple((re.compile(beginning, re.DOTALL), words) for beginning, words in _BEGINNINGS)

# What is done with files of these suffixes, which are passed over in folders.
_RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f",
)  # fmt: skip
ADVICE = (
    dict.fromkeys(_RAW_SUFFIXES, "develop to TIFF or JPEG")
    | dict.fromkeys((".dcm", ".nii", ".fits", ".npy"), "write as TIFF")
    | dict.fromkeys((".jp2", ".j2k", ".jxl", ".psd", ".tga"), "convert to PNG or TIFF")
)


def kind_of(head: bytes) -> str:
    """What a file that could not be read as a picture is, and what to do with it; empty where it is not known.

    Args:
        head: its first bytes, HEAD of them or all.
    """
    return next((words for beginning, words in _KNOWN if beginning.match(head)), "")
