"""lm-eval tasks, read from their files without importing lm-eval, which takes many seconds."""
