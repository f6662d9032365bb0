"""The built-in corpus, for lm-eval tasks of one's own: their files' digests are in ids, so this import never moves."""

from boomspec.compile.text_files import python_stdlib as python_stdlib
