"""File formats by their first bytes: what a file is, whatever its name or its sender says."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of files.

    Args:
        name: as people call it.
        pattern: regular expression of how its files begin, within the first 64 bytes.
    """

    name: str
    pattern: bytes

    def begins(self, data: bytes) -> bool:
        """Whether a file's bytes begin as files of the format do."""
        return re.match(self.pattern, data[:64], re.DOTALL) is not None


PNG = FileFormat("PNG", rb"\x89PNG\r\n\x1a\n")
JPEG = FileFormat("JPEG", rb"\xff\xd8\xff")
GIF = FileFormat("GIF", rb"GIF8[79]a")
WEBP = FileFormat("WebP", rb"RIFF.{4}WEBP")
BMP = FileFormat("BMP", rb"BM")
TIFF = FileFormat("TIFF", rb"II\*\0|MM\0\*")
MP4 = FileFormat("MP4", rb".{4}ftyp")
WEBM = FileFormat("WebM or Matroska", rb"\x1aE\xdf\xa3.*(webm|matroska)")
AVI = FileFormat("AVI", rb"RIFF.{4}AVI ")
WAV = FileFormat("WAV", rb"RIFF.{4}WAVE")
FLAC = FileFormat("FLAC", rb"fLaC")
OGG = FileFormat("Ogg", rb"OggS")
MP3 = FileFormat("MP3", rb"ID3|\xff[\xfb\xfa\xf3\xf2\xe3\xe2]")
AIFF = FileFormat("AIFF", rb"FORM.{4}AIF")
