"""Default batch, chunk and buffer sizes of the runners; cost estimates use the same numbers."""

from typing import Final

MICRO_BATCH: Final = 8  # sequences of a training that go through the model at once, where a spec does not say
BATCH_SIZE: Final = 8  # the same of a measurement
ANSWERED_TOKENS: Final = 256  # of lm-eval's requests that are run at once, for each of BATCH_SIZE
SIMILARITY_WINDOWS: Final = 8  # windows on which a student's states are compared with its teacher's
KEPT_CHECKPOINTS: Final = 2
CHUNK_LOGITS: Final = 2**24  # of one chunk of the head loss: 64 MiB in fp32, for the student and for the teacher
# Positions of a chunk at least. Each chunk adds a gradient as large as the head to the sum: with fewer positions that
# traffic outweighs the matrix products (CPU: measured; CUDA: by arithmetic).
LEAST_CHUNK: Final = {"cpu": 64, "cuda": 512}
# Of what the losses work on at once, in fp32. CPU: it stays in the cache (measured); CUDA: enough for every kernel.
TILE_LOGITS: Final = {"cpu": 2**19, "cuda": 2**25}
SEARCHED_LOGITS: Final = 2**22  # of one chunk of a search
MEASURED_LOGITS: Final = 2**23  # of a measurement that are in memory at once: 32 MiB in fp32
HELD_LOGITS: Final = 2**30  # bytes of the teacher's logits that a search keeps; more are computed again
HELD_STATES: Final = 4 * 2**30  # bytes of hidden states that a search keeps
OUTPUT_SHARD: Final = 2**26  # bytes of one file of a teacher's stored outputs
COPY_BUFFER: Final = 2**18  # bytes of a tensor that are converted at once; measured on ext4: 1 MB and more is slower
DEQUANTIZED_SHARD: Final = 2 * 10**9  # bytes of one file of a model that is dequantised
STATES_SHARD: Final = 2**27  # bytes of one file of a teacher's hidden states, which is in memory while it is computed
STREAMED_STATES: Final = 2**28  # bytes of hidden states that a block computes at once where they are not stored
