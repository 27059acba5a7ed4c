"""`make bench`: how fast quantized networks are, beside the best float32 and int8 that others offer, in one process. Not a part of `make test`."""
