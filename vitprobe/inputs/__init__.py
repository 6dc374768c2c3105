"""Read images: safe decoding, sources of many kinds, generated scenes."""
