"""What every test runs under: one thread for each process (two on a busy machine can stall OpenMP), no model hub."""

import os

# Before torch or transformers is imported, by a test or by a process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray reads it when it is imported, which may be long before a test starts a cluster.
os.environ["RAY_AUTH_MODE"] = "token"
