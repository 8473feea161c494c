"""Pictures: `decoding` reads one, `preprocessing` makes it a network's input, `discovery` finds them on disk.

A file is looked at by `inspection` before it is decoded, with `tags` (EXIF and TIFF), `boxes` (AVIF and JPEG 2000) and
`repacking` (what Pillow would decode value by value).
"""
