"""Text to token files: corpora, tokenizers, Megatron's indexed format, and the preparation that joins them."""
