"""Pictures: `decoding` reads one, `preprocessing` makes it a network's input, `discovery` finds them on disk.

What is given: `sources` (images in memory), `path_lists` (lists of paths). What a file is: `kinds` (the table of all
kinds) and `recognition`. Before a file is decoded, `inspection` looks at it, with `streams`, `tags` (EXIF and TIFF),
`boxes` (AVIF, HEIC and JPEG 2000), `extracting` (files of several pictures) and `repacking` (what Pillow would decode
value by value). `raw` and `heif` read what needs more than Pillow; `conversion` brings pixels to RGB, upright.
"""
