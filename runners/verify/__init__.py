"""Finished runs made again and compared, file by file and number by number."""
